"""`train export`: the backbone of a run as other libraries load it, a model card, and features of images as Parquet."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.atomic import atomic_path, remove_stale_temporaries, write_bytes
from graphbuild.store.graph import Graph
from graphbuild.store.outputs import PARQUET_METADATA, require_replaceable
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.cards import Repository, last_name, require_own_card
from train.config import TrainConfig, told_objective
from train.data.base import decode_centre
from train.data.prepare import absolute, is_parquet
from train.data.repeats import rules_of_graph
from train.data.sources import open_images
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import feature_batches
from train.model.encoders import Encoder, has_fast_bfloat16
from train.model.weights import dump_weights
from train.results.model_card import INTRODUCTION, model_card, public_config
from train.run.checkpoint import WEIGHTS, checkpoints, load_encoder, read_checkpoint
from train.run.folder import EVAL_FILE, TRAINED, read_run_config
from train.run.loop import settle
from train.run.metrics import read_metrics
from train.run.scores import HEADLINE, read_scores

BACKBONE, CARD = "backbone.safetensors", "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult(Answer):
    """Where `export_run` wrote the encoder, and what of."""

    weights: Path
    sha256: str
    card: Path
    features: Path | None = None
    images: int = 0
    """Images whose features were written."""
    corrupt_images: int = 0
    url: str | None = None
    """Of the repository, where it was uploaded."""

    def summary(self) -> str:
        """Return what was written in a line for people, and where it is said how to load it."""
        written = f"{self.weights} (sha256 {self.sha256[:16]}...) and {self.card}"
        written += f", uploaded to {self.url}" if self.url else ""
        if self.features is not None:
            corrupt = f"; {self.corrupt_images:,} cannot be read and were left out" if self.corrupt_images else ""
            written += f"; features of {self.images:,} images in {self.features}{corrupt}"
        return f"{written}\n{next_steps(f'load it as {self.card} shows')}"


def export_run(
    run_dir: Path,
    out: Path,
    *,
    features: Path | None = None,
    data: str | None = None,
    stated_license: str | None = None,
    repository: Repository | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Write a finished run's backbone and its card, and features of images where they are asked for.

    Args:
        run_dir: The run's folder.
        out: Folder of the two files.
        features: Parquet file of `sample_id` and `feature`, a fixed-size list of float32; images that cannot be read are left out.
        data: Images of the features; None: those of the run.
        stated_license: Of the weights, for the card.
        repository: Where the two files are uploaded; None: nowhere.
        overwrite: Replace any file, and not only those that an export wrote.

    Raises:
        OptionError: If the folder is not that of a run, --data comes without --features, a file of others would be replaced, or an
            upload is asked for without a token.
        ResourceError: If the upload fails; the folder stays.
        ArtifactError: If the run is not finished, or its files are damaged.
        SourceError: If the images are missing or none can be read.
    """
    if data is not None and features is None:
        raise OptionError("--data names the images of --features: give the file to write with --features, too.")
    if repository is not None:
        repository.require_token()
    for path in (out / BACKBONE, *([features] if features else [])):
        require_replaceable(path, overwrite=overwrite)
    if not overwrite:
        require_own_card(out / CARD, INTRODUCTION, "train export")
    remove_stale_temporaries(out, of=CARD)
    config = read_run_config(run_dir)
    encoder = load_encoder(run_dir)
    facts = {"format": "pt", **PARQUET_METADATA, "model": config.model, "image_size": str(config.image_size)}
    content = dump_weights(encoder.backbone.state_dict(), facts)
    sha256 = hashlib.sha256(content).hexdigest()
    write_bytes(out / BACKBONE, content)
    card = model_card(
        public_config(config),
        weights=BACKBONE,
        facts=_facts(run_dir, config, encoder, sha256),
        scores=_scores(run_dir),
        stated_license=stated_license,
    )
    write_bytes(out / CARD, card.encode())
    url = None if repository is None else repository.upload(out, [BACKBONE, CARD])
    result = ExportResult(weights=out / BACKBONE, sha256=sha256, card=out / CARD, url=url)
    if features is None:
        return result
    images, corrupt = write_features(features, encoder, config, data, sha256)
    return replace(result, features=features, images=images, corrupt_images=corrupt)


def write_features(path: Path, encoder: Encoder, config: TrainConfig, data: str | None, sha256: str) -> tuple[int, int]:
    """Write features of the centre view of every image; returns how many were written, and how many cannot be read."""
    config = settle(replace(config, device="auto"))
    device, chosen = torch.device(config.device), data or config.data
    if chosen is None:
        raise OptionError("the run does not record its images. Name them with --data.")
    parquet = is_parquet(chosen)
    id_column = config.id_column if parquet or data is None else None
    column, rules = config.image_column if parquet else None, rules_of_graph(config.graph_dir) if data is None else {}
    source = open_images(absolute(chosen), image_column=column, id_column=id_column, **rules)
    corrupt = CorruptImages(source.name, config.max_corrupt)
    store = ImageStore(
        source, size=config.image_size, corrupt=corrupt, workers=config.workers, cache_bytes=0, decoder=decode_centre
    )
    half = config.precision == "bfloat16" and has_fast_bfloat16(device)
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), encoder.feature_dim)
    schema = pa.schema([pa.field("sample_id", pa.string(), nullable=False), pa.field("feature", kind, nullable=False)])
    schema, written = schema.with_metadata({"weights_sha256": sha256, **PARQUET_METADATA}), 0
    try:
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for rows, (found,) in feature_batches([encoder], store, device=device, bfloat16=half, label="features"):
                values = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(found.numpy())), type=kind)
                writer.write_batch(pa.record_batch([pa.array(store.sample_ids(rows.tolist())), values], schema=schema))
                written += len(rows)
    finally:
        store.close()
    return written, len(corrupt)


def _facts(run_dir: Path, config: TrainConfig, encoder: Encoder, sha256: str) -> dict[str, dict[str, Any]]:
    """Return the tables of the card."""
    last = (read_metrics(run_dir) or [{}])[-1]
    return {
        "Weights": {"file": BACKBONE, "sha256": sha256, "feature width": encoder.feature_dim, "of the run": run_dir.name},
        "Training": {
            "objective": told_objective(config),
            "tau": config.logit_temperature,
            "tau_s": config.tau_s if config.has_soft_target else None,
            "batch size": config.batch_size,
            "batches": config.batches,
            "steps": last.get("step"),
            "images seen": last.get("images_seen"),
            "last loss": last.get("loss"),
        },
        "Data": {"images": last_name(config.data), "digest of samples and graph": _fingerprint(run_dir)},
        **_graph_facts(config),
    }


def _graph_facts(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return the tables of each graph; of several they are numbered."""
    tables: dict[str, dict[str, Any]] = {}
    for number, path in enumerate(config.graphs, start=1):
        mark = f" {number}" if len(config.graphs) > 1 else ""
        tables |= {f"{name}{mark}": table for name, table in _facts_of_graph(path).items()}
    return tables


def _facts_of_graph(path: str) -> dict[str, dict[str, Any]]:
    try:
        graph = Graph.open(path)
    except ArtifactError:
        return {"Graph": {"directory": last_name(path), "note": "was not there any more when this card was written"}}
    manifest = graph.manifest
    files = {name: receipt.digest for name, receipt in sorted(manifest.stages["knn"].files.items())}
    text = manifest.encoder
    return {
        "Graph": {
            "directory": last_name(path),
            "data set": manifest.dataset.get("name"),
            "texts": graph.n_texts,
            "neighbours a text": graph.k,
            "digest of its neighbour files": hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest(),
        },
        "Text encoder": {"name": last_name(text.get("name")), **{name: text.get(name) for name in ("revision", "sha256", "dim")}},
    }


def _fingerprint(run_dir: Path) -> str | None:
    """What the run's checkpoints say of its data; None where they were removed."""
    for path in checkpoints(run_dir):
        try:
            return read_checkpoint(path).position.fingerprint
        except ArtifactError:
            continue
    return None


def _scores(run_dir: Path) -> dict[str, Any]:
    path = run_dir / EVAL_FILE
    if not path.exists() or path.stat().st_mtime < (run_dir / WEIGHTS).stat().st_mtime:
        return {}
    stored = read_scores(path)
    rows = (stored.get("scores") or {}).get(TRAINED) or {}
    return {column: row for column, row in rows.items() if {name for name, _ in HEADLINE} <= set(row)}
