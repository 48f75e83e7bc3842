"""A graph as a folder that `datasets` reads, with a card that says what it is and how good: for the Hugging Face hub.

Configurations, each a Parquet file a shard of the graph: texts, samples, edges in long form, knn, its rows with sketches, and
rescored, where there is that stage.
(All are Parquet, for `datasets` reads a repository in one format.)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.atomic import atomic_path, remove_stale_temporaries, write_text
from graphbuild.store.digests import digest_file
from graphbuild.store.files import Receipt
from graphbuild.store.frames import EDGE_COLUMNS, EDGES, Frames, graph_blocks
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import REMEDY
from graphbuild.store.tables import map_arrow, read_parquet
from graphbuild.store.verified import EMBED_AGAIN, require_verified
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.cards import Repository, front_matter, last_name, license_fields, require_own_card, table
from graphbuild.system.progress import progress

CARD = "README.md"
INTRODUCTION = "A graph of texts and their nearest neighbours, made with X-CLR Graph."
"""How a card begins, by which it is known."""
_EDGES_A_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishConfig:
    """What is said about a graph that is published, and where it goes."""

    license: str
    """Of the captions, as the user states it."""
    repo: str | None = None
    """`user/name` on the hub; None writes the folder alone."""
    private: bool = False
    """Whether a repository that is made is seen by nobody else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How good the graph was found to be; what is None was not measured."""

    recall: float | None
    recall_rows: int | None
    health: Sequence[tuple[str, str, str, str, str]]
    """Figure, value, value of a shuffled graph, verdict, what is good."""
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishResult(Answer):
    """The folder that was written."""

    out: Path
    files: int
    bytes: int
    rows: dict[str, int] = field(default_factory=dict)
    """Of each configuration."""
    url: str | None = None
    """Of the repository, where it was uploaded."""

    def summary(self) -> str:
        """Return a line or two for people."""
        held = ", ".join(f"{rows:,} {name}" for name, rows in self.rows.items())
        written = f"{self.out}: {self.files} files, {self.bytes / 1e6:,.1f} MB ({held})"
        if self.url is not None:
            written += f"\nuploaded: {self.url}"
        return f"{written}\n{next_steps(f'in Python, datasets.load_dataset({str(self.out)!r}, {EDGES!r})')}"


def require_publishable(graph_dir: Path, out: Path, config: PublishConfig) -> None:
    """Check that a graph can be published into a folder, before time is spent on measuring it.

    Raises:
        ArtifactError: If the knn stage is not done.
        OptionError: If the folder holds something else, or an upload is asked for without a token.
    """
    Manifest.load(graph_dir).require("knn", graph_dir)
    graph, folder = graph_dir.resolve(), out.resolve()
    if folder == graph or graph.is_relative_to(folder):
        raise OptionError(f"--out {out}: would lie over the graph. Choose another folder.")
    require_own_card(out / CARD, INTRODUCTION, "graphbuild publish")
    # A killed command may have left no more than that.
    remove_stale_temporaries(out, of=CARD)
    if out.is_dir() and not (out / CARD).exists() and any(out.iterdir()):
        raise OptionError(f"--out {out}: holds other files. Choose another folder.")
    if not config.license.strip():
        raise OptionError("--license is empty. Name the licence of the captions, such as cc-by-4.0, or say unknown.")
    if config.repo is not None:
        Repository(name=config.repo, kind="dataset").require_token()


def publish_graph(graph_dir: Path, out: Path, config: PublishConfig, measured: Measured) -> PublishResult:
    """Write the folder, and upload it where a repository is named.

    Args:
        graph_dir: A graph with neighbours.
        out: The folder; an earlier one of this command is brought up to date.
        config: Licence and repository.
        measured: Figures for the card.

    Raises:
        ArtifactError: If the knn stage is not done, or a file is damaged.
        OptionError: As `require_publishable`.
        ResourceError: If the upload fails; the folder stays.
    """
    require_publishable(graph_dir, out, config)
    tables = Frames(graph_dir)
    # First, so that a folder left by a killed command is known as ours.
    write_text(out / CARD, f"{INTRODUCTION} Not finished: run `graphbuild publish` again.\n")
    rows = {
        schemas.TEXTS: _write_texts(tables, out),
        schemas.SAMPLES: _copy_samples(tables, out),
        EDGES: _write_edges(tables, out),
        schemas.KNN: _write_rows(tables, out, "knn", schemas.KNN),
    }
    if "rescore" in tables.manifest.stages:
        rows[schemas.RESCORED] = _write_rows(tables, out, "rescore", schemas.RESCORED)
    else:
        _settle(out, schemas.RESCORED, (), ())
    write_text(out / CARD, _card(tables, config, measured, rows, f"./{out.resolve().name}"))
    files = sorted([CARD, *(f"{name}/{path.name}" for name in rows for path in (out / name).glob("part-*"))])
    size = sum((out / name).stat().st_size for name in files)
    url = None
    if config.repo is not None:
        url = Repository(name=config.repo, kind="dataset", private=config.private).upload(out, files)
    return PublishResult(out=out, files=len(files), bytes=size, rows=rows, url=url)


def _write_texts(tables: Frames, out: Path) -> int:
    """Texts with their counts, a file a shard."""
    receipts = tables.manifest.require("text", tables.path)
    texts, counts = receipts.in_folder(schemas.TEXTS), receipts.in_folder(schemas.COUNTS)
    require_verified(tables.path, [*texts, *counts], remedy=EMBED_AGAIN)
    for text, count in zip(texts, counts, strict=True):
        held, beside = read_parquet(tables.path / text.path), read_parquet(tables.path / count.path)
        for name in beside.column_names[1:]:
            held = held.append_column(name, beside[name])
        with atomic_path(out / text.path) as temporary:
            pq.write_table(held, temporary, compression="zstd")
    return _settle(out, schemas.TEXTS, [receipt.path for receipt in texts], texts)


def _write_rows(tables: Frames, out: Path, stage: str, folder: str) -> int:
    """Rows of a stage as they are, a file a shard."""
    receipts = tables.manifest.require(stage, tables.path).in_folder(folder)
    require_verified(tables.path, receipts, remedy=REMEDY.replace("knn", stage))
    names = [f"{folder}/part-{index:05d}.parquet" for index in range(len(receipts))]
    for receipt, name in zip(receipts, names, strict=True):
        batch = map_arrow(tables.path / receipt.path, [schemas.TEXT_ID], rows=receipt.rows, remedy=REMEDY)
        with atomic_path(out / name) as temporary:
            pq.write_table(pa.Table.from_batches([batch]), temporary, compression="zstd")
    return _settle(out, folder, names, receipts)


def _write_edges(tables: Frames, out: Path) -> int:
    """Edges in long form, a file a shard."""
    graph, written = tables.graph, list[str]()
    starts = [start for start, _ in graph.shard_rows()]
    blocks = _grouped(graph_blocks(graph, _EDGES_A_BLOCK), starts)
    with progress("edges", graph.n_texts, unit="texts") as meter:
        for index, shard in enumerate(blocks):
            name = f"{EDGES}/part-{index:05d}.parquet"
            with atomic_path(out / name) as temporary, pq.ParquetWriter(temporary, _edge_schema(), compression="zstd") as writer:
                for first, rows in shard:
                    writer.write_table(pa.table([make(first, rows) for make in EDGE_COLUMNS.values()], schema=_edge_schema()))
                    meter.advance(len(rows.neighbor_ids))
            written.append(name)
    _settle(out, EDGES, written, [])
    return graph.n_texts * graph.k


def _edge_schema() -> pa.Schema:
    kinds = dict.fromkeys(EDGE_COLUMNS, pa.int32()) | {"similarity": pa.float32()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _grouped(blocks: Iterator[tuple[int, Any]], starts: list[int]) -> Iterator[list[tuple[int, Any]]]:
    """Blocks of rows, which are views, by the shard that they lie in."""
    group: list[tuple[int, Any]] = []
    for first, rows in blocks:
        if group and first in starts:
            yield group
            group = []
        group.append((first, rows))
    yield group


def _copy_samples(tables: Frames, out: Path) -> int:
    """Samples as they are."""
    receipts = tables.manifest.require("text", tables.path).in_folder(schemas.SAMPLES)
    require_verified(tables.path, receipts, remedy="Run `graphbuild verify`: it names the command that rebuilds it.")
    for receipt in receipts:
        path = out / receipt.path
        if not (path.is_file() and digest_file(path) == receipt.digest):
            with atomic_path(path) as temporary:
                shutil.copyfile(tables.path / receipt.path, temporary)
    return _settle(out, schemas.SAMPLES, [receipt.path for receipt in receipts], receipts)


def _settle(out: Path, folder: str, names: Sequence[str], receipts: Sequence[Receipt]) -> int:
    """Remove shards of an earlier graph, and what killed commands left; returns the rows of those that are listed."""
    remove_stale_temporaries(out / folder)
    for path in (out / folder).glob("part-*"):
        if f"{folder}/{path.name}" not in names:
            path.unlink()
    return sum(receipt.rows for receipt in receipts)


def _card(tables: Frames, config: PublishConfig, measured: Measured, rows: Mapping[str, int], folder: str) -> str:
    manifest = tables.manifest
    name = config.repo.split("/")[1] if config.repo else tables.path.name
    header = {
        **license_fields(config.license),
        "pretty_name": f"Neighbour graph of {name}",
        "tags": ["nearest-neighbors", "similarity-graph", "x-clr"],
        "configs": [{"config_name": one, "data_files": [{"split": "train", "path": f"{one}/*.parquet"}]} for one in rows],
    }
    parts = [
        f"# Neighbour graph of {name}",
        INTRODUCTION,
        f"## Load it\n\n```python\n{loading_code(config.repo or folder)}```",
        f"## What it is\n\n{table(_facts(manifest, tables.graph.k, config, measured))}",
        f"## Configurations\n\n{table([(one, rows[one], _CONTENTS[one]) for one in rows], ('name', 'rows', 'columns'))}",
    ]
    if measured.health:
        head = ("figure", "value", "shuffled", "verdict", "good is")
        parts.append(
            "## Health\n\nShuffled is the same graph with every edge ending at a random text.\n\n" + table(measured.health, head)
        )
    parts += [f"- {note}" for note in measured.notes]
    return front_matter(header) + "\n" + "\n\n".join(parts) + "\n"


_CONTENTS = {
    schemas.TEXTS: "text_id, text, text_hash, sample_count, caption_count",
    schemas.SAMPLES: "sample_id, sample_hash, text_id, and the columns that were kept",
    EDGES: "src, dst, rank (1 the nearest), similarity",
    schemas.RESCORED: "a row a text: neighbor_ids, similarities by the cross-encoder, stored_similarities (float16)",
    schemas.KNN: "a row a text: neighbor_ids, similarities (float16), sketch and its scale",
}


def _facts(manifest: Manifest, k: int, config: PublishConfig, measured: Measured) -> Iterator[tuple[str, object]]:
    encoder, knn = manifest.encoder, manifest.stages["knn"]
    facts: dict[str, object | None] = {
        "licence of the captions": config.license,
        "data set": manifest.dataset.get("name"),
        "texts (N)": manifest.counts.get("texts"),
        "samples": manifest.counts.get("samples"),
        "neighbours a text (k)": k,
        "search": knn.config.get("method"),
        "encoder": last_name(encoder.get("name")),
        "encoder's revision": encoder.get("revision"),
        "encoder's weights, sha256": encoder.get("sha256"),
        "vector width": encoder.get("dim"),
        "precision": encoder.get("precision"),
        "prompt": encoder.get("prompt"),
    }
    if measured.recall is not None:
        facts["recall"] = f"{measured.recall:.6f}, against a float64 brute force on {measured.recall_rows:,} random texts"
    if (certified := knn.facts.get("certified_rows")) is not None:
        again = knn.facts.get("recomputed_rows", 0)
        facts["rows proven exact"] = f"{certified:,} by their certificate, {again:,} computed again in float64"
        facts["certificate share"] = f"{certified / max(manifest.counts['texts'], 1):.4%}"
    return ((name, value) for name, value in facts.items() if value is not None)


def loading_code(place: str) -> str:
    """Return Python that loads the graph by its name on the hub, or from a folder; a test runs it."""
    return (
        "from datasets import load_dataset\n"
        f'texts = load_dataset("{place}", "texts", split="train")\n'
        f'edges = load_dataset("{place}", "edges", split="train")\n'
        'print(texts[edges[0]["src"]]["text"], "|", texts[edges[0]["dst"]]["text"], "|", edges[0]["similarity"])\n'
    )
