"""Backends of one sentence encoder: texts a second, by the clock and of processor time, and cosines to float32 by torch.

`python -m benchmarks.backends --encoder FOLDER --file onnx/model.onnx --file onnx/model_qint8_avx512_vnni.onnx` measures every
backend that is installed on every file, and torch in both precisions. All take turns on the same captions.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from statistics import median

import click
import numpy as np

from benchmarks.__main__ import conditions
from benchmarks.captions import read_captions
from graphbuild.embed.encoder import Encoder
from graphbuild.embed.encoder_files import EncoderSpec, find_encoder
from graphbuild.embed.sentence_encoder import SentenceEncoder

_MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}


def measure(folder: Path, files: tuple[str, ...], texts: list[str], rounds: int) -> str:
    """Return a line for each backend and file."""
    plain = find_encoder(str(folder))
    encoders: dict[str, Encoder] = {f"torch, {kind}": SentenceEncoder(plain, kind) for kind in ("float32", "bfloat16")}
    for backend, module in _MODULES.items():
        if importlib.util.find_spec(module) is not None:
            encoders |= {f"{backend}, {file}": _encoder(plain, backend, file) for file in files}
    tokens, _ = encoders["torch, float32"].tokenize(texts)
    right_ND = encoders["torch, float32"].encode(tokens)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    cosines = {}
    for _ in range(rounds):
        for name, encoder in encoders.items():
            started, used = time.perf_counter(), time.process_time()
            vectors_ND = encoder.encode(tokens)
            seconds[name].append((time.perf_counter() - started, time.process_time() - used))
            cosines[name] = np.einsum("nd,nd->n", vectors_ND, right_ND)
    lines = [f"{'backend':<48}{'texts/s':>10}{'of CPU':>10}{'lowest cosine':>16}{'median':>10}"]
    for name, times in seconds.items():
        rates = [len(texts) / median(one) for one in zip(*times, strict=True)]
        low, middle = cosines[name].min(), np.median(cosines[name])
        lines.append(f"{name:<48}{rates[0]:>10,.0f}{rates[1]:>10,.0f}{low:>16.5f}{middle:>10.5f}")
    return "\n".join(lines)


def _encoder(plain: EncoderSpec, backend: str, file: str) -> Encoder:
    return SentenceEncoder(plain.with_backend(backend, file), "float32")


@click.command()
@click.option("--encoder", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--file", "files", multiple=True, help="Of the encoder's folder; repeatable.")
@click.option("--texts", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(folder: Path, files: tuple[str, ...], texts: int, rounds: int) -> None:
    """Print the table, with its conditions."""
    captions, what = read_captions(texts)
    click.echo(f"{conditions()}; {len(captions):,} {what}, median of {rounds} rounds")
    click.echo(measure(folder, files, captions, rounds))


if __name__ == "__main__":
    main()
