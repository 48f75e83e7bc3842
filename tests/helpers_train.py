"""Tiny images and graphs for the trainer's tests: a run over them takes a second."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers_graph import clustered_vectors, write_graph
from numpy.typing import NDArray
from PIL import Image

from train.config import TrainConfig

# Tiny tensors gain nothing from a second thread, and threads of several busy processes wait for each other.
torch.set_num_threads(1)

CLASSES = 5


def draw(index: int, *, height: int = 12, width: int = 12) -> NDArray[np.uint8]:
    """A picture whose colour tells its class (index mod 5), with some noise."""
    rng = np.random.default_rng(index)
    colour = np.random.default_rng(index % CLASSES + 1000).integers(40, 215, 3)
    return (colour + rng.integers(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], kind: str = "png", mode: str | None = None) -> bytes:
    """An image file's bytes."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def write_images(path: Path, count: int, *, broken: tuple[int, ...] = (), prefix: str = "img", group: int = 16) -> Path:
    """A Parquet file of `count` pictures: image, id, label; those of `broken` are no images."""
    cells = [b"not an image" if i in broken else encode(draw(i)) for i in range(count)]
    columns = {
        "image": pa.array(cells, pa.binary()),
        "id": [f"{prefix}-{i}" for i in range(count)],
        "label": [f"class {i % CLASSES}" for i in range(count)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def write_tar_shards(folder: Path, count: int, *, per_shard: int = 16, broken: tuple[int, ...] = (), prefix: str = "img") -> Path:
    """A folder as img2dataset writes it (webdataset's own writer): shards, and a Parquet file of what happened beside each.

    The URL of picture i is `<prefix>-<i>`, and its class (i mod 5) is in the JSON; those of `broken` are no images.
    """
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, count, per_shard)):
        metas = []
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for i in range(start, min(start + per_shard, count)):
                key = f"{shard:05d}{i - start:04d}"
                meta = {"caption": f"picture {i}", "url": f"{prefix}-{i}", "key": key, "status": "success", "error_message": None}
                metas.append(meta | {"width": 12, "height": 12, "label": f"class {i % CLASSES}"})
                image = b"not an image" if i in broken else encode(draw(i))
                writer.write({"__key__": key, "jpg": image, "txt": f"picture {i}", "json": json.dumps(metas[-1], indent=4)})
        pq.write_table(pa.Table.from_pylist(metas), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": len(metas), "successes": len(metas)}))
    return folder


def write_tiny_graph(graph_dir: Path, count: int, *, texts: int = 40, k: int = 5) -> Path:
    """A finished graph of `texts` texts, and samples img-0, img-1, ... of text i mod `texts`."""
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn

    write_graph(graph_dir, clustered_vectors(texts, 16), samples=[(f"img-{i}", i % texts) for i in range(count)])
    build_knn(graph_dir, KnnConfig(k=k, sketch_dim=8))
    return graph_dir


def tiny_config(**changes: Any) -> TrainConfig:
    """Eight images a step at 8 pixels, on the CPU, every step logged."""
    settings: dict[str, Any] = {
        "image_size": 8,
        "batch_size": 8,
        "epochs": 2,
        "device": "cpu",
        "precision": "float32",
        "projector_hidden": 16,
        "projector_dim": 8,
        "log_every": 1,
        "id_column": "id",
    }
    return TrainConfig(**{**settings, **changes})
