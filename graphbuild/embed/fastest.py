"""Which backend computes an encoder fastest on this machine, measured where `--backend fastest` asks for it.

Only what agrees with torch in float32 is taken: files in int8 that move vectors are measured, said and left out.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphbuild.embed.encoder import MIN_COSINE, PROBES, choose_precision
from graphbuild.embed.encoder_files import BACKEND_FILES, EncoderSpec
from graphbuild.embed.sentence_encoder import SentenceEncoder
from graphbuild.errors import UserError
from graphbuild.system.progress import progress, say

FASTEST = "fastest"
"""What --backend takes, beside the names of backends."""
_MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One way to compute an encoder."""

    spec: EncoderSpec
    rate: float
    """Probe sentences a second, the fastest of some rounds."""
    cosine: float
    """The lowest to torch in float32."""

    @property
    def name(self) -> str:
        """Backend and file, for messages."""
        return f"{self.spec.backend} {self.spec.backend_file or self.spec.precision}"


def choose_backend(spec: EncoderSpec, precision: str) -> tuple[EncoderSpec, float | None]:
    """Measure torch, and every file in the encoder's folder of a backend that is installed; the choice is said in a line.

    Args:
        spec: The encoder, for torch.
        precision: Of torch, as `choose_precision` takes it.

    Returns:
        The encoder with its backend and precision, and its lowest cosine to float32 on 64 probe sentences, where it was measured.
    """
    torch_spec, cosine = choose_precision(spec, precision)
    others = candidates(spec, [name for name, module in _MODULES.items() if importlib.util.find_spec(module) is not None])
    if not others:
        say(f"backend: torch (nothing else to measure: {spec.name} has no files of a backend that is installed)")
        return torch_spec, cosine
    full = SentenceEncoder(spec, "float32")
    tokens, _ = full.tokenize(PROBES)
    exact_BD, found, failed = full.encode(tokens), list[Measured](), dict[str, str]()
    with progress("measuring backends", len(others) + 1, unit="backends") as meter:
        for one in (torch_spec, *others):
            try:
                encoder = SentenceEncoder(one, one.precision)
            except UserError as error:
                failed[str(one.backend_file)] = str(error)
            else:
                cosines = np.einsum("bd,bd->b", exact_BD, encoder.encode(tokens))
                found.append(Measured(spec=one, rate=_rate(encoder, tokens), cosine=float(cosines.min())))
            meter.advance(1)
    best = fastest(found)
    say(summary(best, found, failed))
    return best.spec, best.cosine


def candidates(spec: EncoderSpec, installed: Sequence[str]) -> list[EncoderSpec]:
    """Return the encoder with each file of other backends that lies where the hub has them."""
    if spec.folder is None:
        return []
    folder, found = Path(spec.folder), list[EncoderSpec]()
    for backend in installed:
        usual = Path(BACKEND_FILES[backend])
        files = sorted((folder / usual.parent).glob(f"*{usual.suffix}"))
        found += [spec.with_backend(backend, path.relative_to(folder).as_posix()) for path in files]
    return found


def fastest(found: Sequence[Measured]) -> Measured:
    """Return the fastest of those that agree with float32; torch, the first, where none does."""
    return max((one for one in found if one.cosine >= MIN_COSINE), key=lambda one: one.rate, default=found[0])


def summary(best: Measured, found: Sequence[Measured], failed: Mapping[str, str]) -> str:
    """Return the choice, and what it rests on, in a line."""
    told = [
        f"{one.name} {one.rate:,.0f}/s" + ("" if one.cosine >= MIN_COSINE else f", left out: cosine to float32 {one.cosine:.4f}")
        for one in found
    ]
    told += [f"{file} left out: {why}" for file, why in failed.items()]
    return f"backend: {best.name} (measured: {'; '.join(told)})"


def _rate(encoder: SentenceEncoder, tokens: Sequence[np.ndarray]) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        encoder.encode(tokens)
        seconds.append(time.perf_counter() - started)
    return len(tokens) / min(seconds)
