"""Kinds of graphs of the same samples: prompts or captions, pictures by a SimCLR run, both fused, WordNet beside prompts.

`python -m benchmarks.graph_kinds --data FOLDER --tiny-run RUN --flickr-run RUN` prints the table of docs/graphs.md. FOLDER holds
tiny_imagenet/val.parquet, flickr8k/*.parquet and classes/tiny_imagenet_*; the runs are those of `train run --objective simclr` on
the pictures of either, and rows of pictures are left out without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import graphbuild
from benchmarks.__main__ import conditions
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.text.table import DEFAULT_TEMPLATE
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.compare import compare_graphs
from graphbuild.quality.health.result import Health
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.hierarchy import read_hierarchy

_TAU_S, _RANK = 0.1, 16
_GROUPS = "coarse_derived"
_PROMPTS: Mapping[str, Any] = {"caption_column": "name", "templates": (DEFAULT_TEMPLATE,)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A graph, and what it is held against."""

    data: str
    name: str
    path: Path
    labels: tuple[str, ...] = ()
    """Columns whose purity at 10 is told."""
    other: Path | None = None
    """A graph of other captions of the same pictures, whose neighbours are compared with these."""
    group: str | None = None


def table(rows: Sequence[Row]) -> str:
    """Return Markdown: agreement, hubs and effective positives of each graph, with those of its shuffled twin in brackets."""
    heads = (
        "data",
        "graph",
        "nodes",
        "agreement",
        "skew of in-degrees",
        "largest ÷ mean",
        f"effective positives, tau_s {_TAU_S:g}",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        health = graphbuild.open(row.path).health(label_columns=row.labels, group_column=row.group, tau_s=_TAU_S)
        agreements = [f"{told}: {value:.1%} ({shuffled:.1%})" for told, value, shuffled in _agreements(row, health)]
        hubs = [health.measure(key) for key in ("hub_skew", "largest_hub")]
        cells = [f"{one.value:.2f} ({one.shuffled or 0:.2f})" if one else "" for one in hubs]
        positives = next(entry["effective_positives"] for entry in health.target if entry["tau_s"] == _TAU_S)
        cells = [row.data, row.name, f"{health.texts:,}", "; ".join(agreements), *cells, f"{positives:,.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _agreements(row: Row, health: Health) -> Iterator[tuple[str, float, float]]:
    wanted = [f"purity_{name}_10" for name in row.labels] + (["group_first", "group_found"] if row.group is not None else [])
    for one in health.measures:
        if one.key in wanted:
            yield one.title, one.value, one.shuffled or 0.0
    if row.other is not None:
        entries = compare_graphs(row.path, row.other, count=0, by_sample=True).overlap_by_rank
        entry = next(one for one in entries if one["rank"] == _RANK)
        yield f"neighbours by the second caption, first {_RANK}", entry["overlap"], entry["random"]


def _embed(path: Path, source: Path, **options: Any) -> Path:
    build_embeddings(path, EmbedConfig(sources=(str(source),), workers=0, **{"dataset": "parquet", **options}))
    build_knn(path, KnnConfig())
    return path


def _fuse(path: Path, *graphs: Path) -> Path:
    fuse_graphs(graphs, path, FuseConfig())
    build_knn(path, KnnConfig())
    return path


def class_rows(data: Path, out: Path) -> list[Row]:
    """Build the graphs of Tiny-ImageNet's 200 classes."""
    _tiny_classes(data).select("wnid", "name", _GROUPS).write_parquet(out / "classes.parquet")
    _write_wordnet(data / "classes/tiny_imagenet_wordnet_pathdist.npz", out / "wordnet.parquet")
    named = _embed(out / "classes", out / "classes.parquet", id_column="wnid", keep_columns=(_GROUPS,), **_PROMPTS)
    wordnet = _embed(out / "wordnet", out / "wordnet.parquet", dataset="vectors", id_column="wnid")
    both = _fuse(out / "classes-wordnet", named, wordnet)
    name, groups = "Tiny-ImageNet, classes", (_GROUPS,)
    return [
        Row(data=name, name="class prompts", path=named, labels=groups),
        Row(data=name, name="class prompts with WordNet, 0.5 each", path=both, labels=groups),
    ]


def tiny_rows(data: Path, run: Path, out: Path) -> list[Row]:
    """Build the graphs of Tiny-ImageNet's 10,000 validation pictures."""
    classes = _tiny_classes(data).select("wnid", _GROUPS)
    pictures = pl.read_parquet(data / "tiny_imagenet/val.parquet").join(classes, on="wnid", how="left", maintain_order="left")
    pictures.write_parquet(out / "tiny.parquet")
    kept = {"id_column": "file", "keep_columns": ("label", _GROUPS)}
    prompted = _embed(out / "tiny-prompts", out / "tiny.parquet", **kept, **_PROMPTS)
    seen = _embed(out / "tiny-pictures", out / "tiny.parquet", embedded="images", encoder=str(run), **kept)
    both = _fuse(out / "tiny-both", prompted, seen)
    name, labels = "Tiny-ImageNet, pictures", ("label", _GROUPS)
    return [
        Row(data=name, name="pictures by SimCLR", path=seen, labels=labels),
        Row(data=name, name="pictures with class prompts, 0.5 each", path=both, labels=labels),
    ]


def _tiny_classes(data: Path) -> pl.DataFrame:
    return pl.read_csv(data / "classes/tiny_imagenet_classes.tsv", separator="\t", quote_char=None)


def _write_wordnet(source: Path, path: Path) -> None:
    """Vectors whose inner products are WordNet's path similarities 1 / (1 + distance), as near as vectors can be."""
    found = read_hierarchy(source, "--data")
    values_C, basis_CC = np.linalg.eigh(1 / (1 + found.distances.astype(np.float64)))
    # Path similarity has a few negative eigenvalues, which no vectors can have.
    vectors_CD = basis_CC * np.sqrt(np.maximum(values_C, 0))
    wnids = sorted(found.places, key=lambda wnid: found.places[wnid])
    pq.write_table(pa.table({"wnid": wnids, "vector": vectors_CD.tolist()}), path)


def flickr_rows(data: Path, run: Path, out: Path) -> list[Row]:
    """Build the graphs of Flickr8k's captions and pictures; others are compared with the second caption of each."""
    pictures = pl.concat([pl.read_parquet(path) for path in sorted((data / "flickr8k").glob("*.parquet"))])
    pictures.with_columns(pl.col("captions").list.head(2)).write_parquet(out / "flickr.parquet")
    every = _embed(out / "flickr-captions", out / "flickr.parquet", caption_column="captions", id_column="file")
    captions, other = (_of_captions(every, number, out / f"flickr-caption-{number}") for number in (0, 1))
    seen = _embed(out / "flickr-pictures", out / "flickr.parquet", id_column="file", embedded="images", encoder=str(run))
    both = _fuse(out / "flickr-both", captions, seen)
    name = "Flickr8k"
    return [
        Row(data=name, name="two captions of each picture", path=every, group="sample_id"),
        Row(data=name, name="first caption of each picture", path=captions, other=other),
        Row(data=name, name="pictures by SimCLR", path=seen, other=other),
        Row(data=name, name="first captions with pictures, 0.5 each", path=both, other=other),
    ]


def _of_captions(every: Path, number: int, out: Path) -> Path:
    """A graph of one caption a picture, whose vectors are taken from that of both."""
    samples = graphbuild.open(every).samples.select("sample_id", "text_id").collect()
    # Rows of a sample stand in the order of its captions.
    own = samples.group_by("sample_id", maintain_order=True).agg(pl.col("text_id").get(number, null_on_oob=True)).drop_nulls()
    vectors_ND = load_embeddings(every)[own["text_id"].to_numpy()]
    source = out.with_suffix(".parquet")
    pl.DataFrame({"file": own["sample_id"], "vector": vectors_ND.astype(np.float32)}).write_parquet(source)
    return _embed(out, source, dataset="vectors", id_column="file")


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--tiny-run", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None)
@click.option("--flickr-run", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("graphs/kinds"), show_default=True)
def main(data: Path, tiny_run: Path | None, flickr_run: Path | None, out: Path) -> None:
    """Build the graphs that are missing, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    rows = class_rows(data, out) + (tiny_rows(data, tiny_run, out) if tiny_run else [])
    rows += flickr_rows(data, flickr_run, out) if flickr_run else []
    click.echo(f"{conditions()}\n{table(rows)}")


if __name__ == "__main__":
    main()
