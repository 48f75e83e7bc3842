"""Small data sets on disk, and the `embed` command, for tests of the source side."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from helpers_forked import run_program

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.store.digests import digest_file

WORDS = ["a", "dog", "cat", "on", "the", "beach", "red", "bus", "hill", "two", "children"]
"""What cross-encoders of tests know."""
COMMAND = "from graphbuild.cli import main; main()"
"""The console script, as a program."""


def write_captions(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A Parquet file of these columns."""
    pq.write_table(pa.table(dict(columns)), path)
    return path


def numbered_captions(count: int) -> list[str]:
    """Distinct captions with many words in common."""
    things, places = ("dog", "cat", "red bus", "tree", "boat"), ("beach", "street", "hill", "lake", "roof", "field", "bridge")
    return [f"{things[i % 5]} number {i} near the {places[i % 7]}" for i in range(count)]


def save_cross_encoder(folder: Path, *, classes: int = 1, base: bool = False, broken: bool = False) -> Path:
    """A random cross-encoder of a few words, saved as any user would."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(str(folder))
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    # Random weights as small as usual would say about the same of every pair.
    sizes |= {"initializer_range": 0.5}
    config = BertConfig(vocab_size=5 + len(WORDS), max_position_embeddings=40, num_labels=classes, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertModel(config) if base else BertForSequenceClassification(config)
    if broken:
        torch.nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(str(folder))
    return folder


def embed(graph_dir: Path, source: Path | str | None, dataset: str = "parquet", **options: Any) -> EmbedResult:
    """Build a graph in this process, by the hashing encoder unless another is named."""
    defaults: dict[str, Any] = {"encoder": "hashing:16", "workers": 0, "sources": () if source is None else (str(source),)}
    return build_embeddings(graph_dir, EmbedConfig(dataset=dataset, **{**defaults, **options}))


def column(graph_dir: Path, folder: str, name: str) -> list[Any]:
    """A column over all shards of a stage."""
    paths = sorted((graph_dir / folder).glob("part-*.parquet"))
    return [value for path in paths for value in pq.read_table(path)[name].to_pylist()]


def shard_digests(graph_dir: Path) -> dict[str, str]:
    """Digest of every shard and of the index."""
    paths = [*graph_dir.glob("*/part-*.parquet"), graph_dir / "index.faiss"]
    return {path.relative_to(graph_dir).as_posix(): digest_file(path) for path in sorted(paths)}


def graphbuild(*arguments: str | Path, cwd: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; `code` replaces its entry point."""
    return run_program(code or COMMAND, *arguments, cwd=cwd)
