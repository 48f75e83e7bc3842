"""Embedding captions against its peers: plain `SentenceTransformer.encode`, and the bare model on ready-made batches.

Every contender encodes the same captions in this process, in turn, round after round, so that a machine that slows down
slows all of them. Tokenising counts for ours and for `encode`; the bare model is handed tensors. The whole command reads
a file and writes a graph directory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from benchmarks import index, lookup, text
from benchmarks.captions import read_captions
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.encoder import choose_precision, load_encoder
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.sentence_encoder import SentenceEncoder
from graphbuild.system.options import DEFAULT_ENCODER

_BATCH = 32
"""The default of `SentenceTransformer.encode`."""
_STAGES: dict[str, Callable[[int], str]] = {"text": text.run, "lookup": lookup.run, "index": index.run}
"""Measured at so many rows, without the encoder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Captions a second of one contender, round by round."""

    name: str
    rates: tuple[float, ...]

    def row(self, reference: Outcome) -> str:
        """Return a line of the table; the ratio is a median over rounds, pair by pair."""
        ratio = median(own / other for own, other in zip(self.rates, reference.rates, strict=True))
        return f"| {self.name} | {median(self.rates):,.0f} | {min(self.rates):,.0f} to {max(self.rates):,.0f} | {ratio:.2f} |"


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    captions, origin = read_captions(2_000 if small else 40_000)
    rounds = 3 if small else 5
    spec, _ = choose_precision(find_encoder(DEFAULT_ENCODER), "auto")
    ours = load_encoder(spec)
    peer = _sentence_transformer(str(spec.folder))
    contenders: dict[str, Callable[[], Any]] = {
        f"ours, {spec.precision}": lambda: ours.encode(ours.tokenize(captions)[0]),
        "SentenceTransformer.encode, float32": lambda: peer.encode(captions, batch_size=_BATCH, show_progress_bar=False),
        f"bare model on ready batches, {spec.precision}": _bare_model(ours, captions),
    }
    with tempfile.TemporaryDirectory() as folder:
        contenders["ours, the whole command, start-up apart"] = _whole_command(Path(folder), captions)
        outcomes = _alternate(contenders, rounds, len(captions))
    cosine = _agreement(ours, peer, captions[:500])
    return "\n".join(
        [
            f"{len(captions):,} {origin}; torch threads {torch.get_num_threads()}; {rounds} rounds in turn after a warm-up; "
            f"lowest cosine to encode's vectors on 500 captions: {cosine:.5f}",
            "| contender | captions/s, median | range | over encode |",
            "|---|---:|---:|---:|",
            *(outcome.row(outcomes[1]) for outcome in outcomes),
        ]
    )


def _sentence_transformer(folder: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(folder, device="cuda" if torch.cuda.is_available() else "cpu")


def _bare_model(encoder: Any, captions: list[str]) -> Callable[[], None]:
    """The transformer alone, on the very batches that ours would make."""
    if not isinstance(encoder, SentenceEncoder):
        raise TypeError("the built-in encoder is a Sentence Transformer")
    batches = [features for _, features in encoder.padded_batches(encoder.tokenize(captions)[0])]

    def forward() -> None:
        for batch in batches:
            encoder.transform(dict(batch))

    return forward


def _whole_command(folder: Path, captions: list[str]) -> Callable[[], None]:
    """All of `graphbuild embed` but importing and loading: reading, unique texts, embeddings, index, files."""
    source = folder / "captions.txt"
    source.write_text("".join(f"{' '.join(caption.split())}\n" for caption in captions), encoding="utf-8")

    def embed() -> None:
        shutil.rmtree(folder / "graph", ignore_errors=True)
        build_embeddings(folder / "graph", EmbedConfig(dataset="lines", sources=(str(source),), workers=0))

    return embed


def _alternate(contenders: dict[str, Callable[[], Any]], rounds: int, count: int) -> list[Outcome]:
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            started = time.perf_counter()
            call()
            if turn:
                rates[name].append(count / (time.perf_counter() - started))
    return [Outcome(name, tuple(values)) for name, values in rates.items()]


def _agreement(ours: Any, peer: Any, captions: list[str]) -> float:
    mine = ours.encode(ours.tokenize(captions)[0])
    other = peer.encode(captions, show_progress_bar=False, normalize_embeddings=True)
    return float(np.einsum("nd,nd->n", mine, other).min())


@click.command()
@click.option("--full", is_flag=True, help="40,000 captions and five rounds instead of 2,000 and three.")
@click.option("--stage", type=click.Choice(["encoder", *_STAGES]), default="encoder", show_default=True, help="What to measure.")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="Captions of --stage text, samples of --stage lookup, vectors of --stage index.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as a JSON string.")
def main(full: bool, stage: str, rows: int, as_json: bool) -> None:
    """Print the table, or the line of another stage."""
    answer = run(small=not full) if stage == "encoder" else _STAGES[stage](rows)
    click.echo(json.dumps(answer) if as_json else answer)


if __name__ == "__main__":
    main()
