"""Encoders to evaluate: a run's, its weights alone, or a backbone that `train export` wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from graphbuild.errors import ArtifactError
from train.model.encoders import Encoder
from train.run.checkpoint import load_encoder

SUFFIX = ".safetensors"


def read_encoder(path: Path) -> Encoder:
    """Return an encoder in evaluation mode, on the CPU; that of an exported backbone has a projector that means nothing.

    Args:
        path: A run's folder, or a `.safetensors`.

    Raises:
        ArtifactError: If the run is not finished, or the file is damaged or no encoder.
    """
    facts = _facts(path) if path.suffix == SUFFIX else {}
    return _read_backbone(path, facts) if facts.get("format") == "pt" and "model" in facts else load_encoder(path)


def _facts(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as stored:
            return dict(stored.metadata() or {})
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file. Name a run's folder, its model.safetensors, or an exported backbone.") from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: not a readable .safetensors ({error}). Export it again.") from None


def _read_backbone(path: Path, facts: dict[str, str]) -> Encoder:
    try:
        # Random weights are drawn before these replace them: the caller's generator is left as it was.
        with torch.random.fork_rng(devices=[]):
            encoder = Encoder(facts["model"], image_size=int(facts["image_size"]), projector_hidden=1, projector_dim=1)  # type: ignore[arg-type]
        with safe_open(path, "pt") as stored:
            encoder.backbone.load_state_dict({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a backbone of a known network ({error}). Export it again.") from error
    return encoder.eval()
