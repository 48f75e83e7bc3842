"""Checkpoints of a run, and its final weights: written so that a crash leaves nothing half-done, verified when loaded.

A checkpoint is a folder `checkpoints/step-00000100/` with `model.safetensors`, `state.pt` (optimizer; loaded with
`weights_only=True`) and `checkpoint.json` (position in the run, and the digest of the other two). The folder is written
under a temporary name, flushed, and renamed; an earlier one of the same step goes only when its successor stands.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor

from graphbuild.errors import ArtifactError
from graphbuild.store.atomic import read_json, write_bytes
from graphbuild.store.digests import digest_json
from graphbuild.store.folders import atomic_folder, recover_folders, remove
from graphbuild.system.answers import quoted
from train.model.encoders import Encoder
from train.model.text_tower import TextTower
from train.model.weights import dump_weights, save_weights

CONFIG_FILE = "config.toml"
FOLDER = "checkpoints"
KEPT = 2
"""Checkpoints that stay; older ones are removed."""
WEIGHTS, STATE, RECEIPT = "model.safetensors", "state.pt", "checkpoint.json"
TEXT_TOWER = "text_tower.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """How far a run has come, and of what data."""

    step: int
    """Steps done."""
    images_seen: int
    seconds: float
    """Spent training, all sessions together."""
    fingerprint: str
    """Of the data; another one would not go on with the same batches."""
    threads: int = 0
    """Of a process; with another number sums are rounded otherwise. 0: not recorded."""
    processes: int = 0
    """Of the job. 0: not recorded."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run goes on from."""

    path: Path
    position: Position
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(run_dir: Path, position: Position, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Path:
    """Write a checkpoint and remove the ones before the last `KEPT`.

    Args:
        run_dir: The run's folder.
        position: Where the run is.
        weights: State of the model.
        optimizer: State of the optimizer.
    """
    stream = io.BytesIO()
    torch.save({"optimizer": optimizer}, stream)
    files = {WEIGHTS: dump_weights(weights), STATE: stream.getvalue()}
    where = asdict(position)
    receipt = {
        "position": where,
        "position_digest": digest_json(where),
        "files": {name: {"bytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)} for name, data in files.items()},
    }
    files[RECEIPT] = (json.dumps(receipt, indent=2) + "\n").encode()
    final = run_dir / FOLDER / f"step-{position.step:08d}"
    with atomic_folder(final) as folder:
        for name, data in files.items():
            write_bytes(folder / name, data)
    for old in checkpoints(run_dir)[KEPT:]:
        remove(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest first, damaged or not."""
    return sorted((run_dir / FOLDER).glob("step-*"), reverse=True)


def newest_checkpoint(run_dir: Path, on_damaged: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint; None if the run has none at all.

    Args:
        run_dir: The run's folder.
        on_damaged: Told of each damaged one that is passed over, in one line.

    Raises:
        ArtifactError: If there are checkpoints, but all of them are damaged.
    """
    recover_folders(run_dir / FOLDER)
    found = checkpoints(run_dir)
    for path in found:
        try:
            return read_checkpoint(path)
        except ArtifactError as error:
            on_damaged(str(error))
    if found:
        raise ArtifactError(f"{run_dir / FOLDER}: all {len(found)} checkpoints are damaged. Start again with --overwrite.")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint and check it by its digests.

    Raises:
        ArtifactError: If a file is missing, cut short or altered.
    """
    try:
        receipt = read_json(path / RECEIPT)
        data = {name: (path / name).read_bytes() for name in (WEIGHTS, STATE)}
        for name, content in data.items():
            if xxhash.xxh3_128_hexdigest(content) != receipt["files"][name]["digest"]:
                raise ArtifactError(f"{path / name} is damaged (its digest differs); the checkpoint before it is used, if any.")
        position = Position(**receipt["position"])
        # Checkpoints of earlier versions have no such digest.
        if receipt.get("position_digest", digest_json(receipt["position"])) != digest_json(receipt["position"]):
            raise ArtifactError(f"{path / RECEIPT} is damaged (its digest differs); the checkpoint before it is used, if any.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a readable checkpoint ({error}); the one before it is used, if any.") from error
    state = torch.load(io.BytesIO(data[STATE]), map_location="cpu", weights_only=True)
    return Checkpoint(path, position, load_safetensors(data[WEIGHTS]), state["optimizer"])


def save_encoder(path: Path, encoder: Encoder) -> None:
    """Write backbone and projector, with what is needed to build them again, atomically."""
    metadata = {
        "format": "xclr-encoder-1",
        "model": encoder.name,
        "image_size": str(encoder.image_size),
        "feature_dim": str(encoder.feature_dim),
        "projector_hidden": str(encoder.projector_hidden),
        "projector_dim": str(encoder.projector_dim),
        **({"projector_bn": "true"} if encoder.projector_bn else {}),
    }
    save_weights(path, encoder.state_dict(), metadata)


def resume_command(run_dir: Path) -> str:
    """Return the command that goes on with a run."""
    return f"train run --config {quoted(run_dir / CONFIG_FILE)} --run-dir {quoted(run_dir)}"


def load_encoder(run_dir: Path) -> Encoder:
    """Return the trained encoder of a run, on the CPU, in evaluation mode.

    Args:
        run_dir: The run's folder, or the `.safetensors` file itself.

    Raises:
        ArtifactError: If the run is not finished, or the file is damaged.
    """
    path = run_dir if run_dir.suffix == ".safetensors" else run_dir / WEIGHTS
    if not path.exists():
        raise ArtifactError(f"{path} is missing: the run is not finished. Go on with `{resume_command(run_dir)}`.")
    try:
        with safe_open(path, "pt") as stored:
            facts = stored.metadata() or {}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        encoder = Encoder(
            facts["model"],
            image_size=int(facts["image_size"]),
            projector_hidden=int(facts["projector_hidden"]),
            projector_dim=int(facts["projector_dim"]),
            projector_bn=facts.get("projector_bn") == "true",
        )
        encoder.load_state_dict(weights)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not the weights of a run ({error}). Train again with --overwrite.") from error
    return encoder.eval()


def save_text_tower(run_dir: Path, tower: TextTower) -> None:
    """Write CLIP's text side, with what is needed to build it again, atomically."""
    metadata = {"format": "xclr-text-tower-1", **{name: str(value) for name, value in tower.shape.items()}}
    save_weights(run_dir / TEXT_TOWER, tower.state_dict(), metadata)


def load_text_tower(run_dir: Path) -> TextTower:
    """Return the text side of a finished CLIP run, on the CPU, in evaluation mode.

    Raises:
        ArtifactError: If the run has none, or the file is damaged.
    """
    path = run_dir / TEXT_TOWER
    if not path.exists():
        raise ArtifactError(f"{path} is missing: only a finished run of --objective clip has a text tower.")
    try:
        with safe_open(path, "pt") as stored:
            facts = {name: int(value) for name, value in (stored.metadata() or {}).items() if name != "format"}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        tower = TextTower(**facts)
        tower.load_state_dict(weights)
    except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a text tower ({error}). Train again with --overwrite.") from error
    return tower.eval()
