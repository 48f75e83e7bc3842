"""A user's folder: pictures as files, their captions in a table, and the graph of both by the real encoder."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.datasets.scenes.source import draw_pictures, parse_config
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn


def write_pictures(folder: Path, count: int = 200) -> Path:
    """Write `pictures/*.png` of drawn scenes and `captions.parquet` (file, caption); returns the folder."""
    draw_pictures(folder / "drawn", parse_config((f"train={count},val=1",)))
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "drawn/images").glob("train-*.parquet"))])
    names = [f"{sample_id}.png" for sample_id in table["sample_id"].to_pylist()]
    (folder / "pictures").mkdir()
    for name, image in zip(names, table["image"].to_pylist(), strict=True):
        (folder / "pictures" / name).write_bytes(image)
    pq.write_table(pa.table({"file": names, "caption": table["caption"]}), folder / "captions.parquet")
    return folder


def build_graph(folder: Path) -> Path:
    """Build `graphs/captions` of what `write_pictures` wrote; returns the graph directory."""
    source = (str(folder / "captions.parquet"),)
    config = EmbedConfig(dataset="parquet", sources=source, caption_column="caption", id_column="file", workers=0)
    build_embeddings(folder / "graphs/captions", config)
    build_knn(folder / "graphs/captions", KnnConfig(k=64))
    return folder / "graphs/captions"
