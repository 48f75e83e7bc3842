"""What `--kernel COLUMN=KIND...` says. Importing this loads nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphbuild.errors import OptionError
from graphbuild.system.options import DEFAULT_ENCODER

USAGE: Mapping[str, str] = {
    "category": "category",
    "taxonomy": "taxonomy:FILE.tsv",
    "tags": "tags, or tags:idf",
    "number": "number:WIDTH, such as number:5",
    "angle": "angle:PERIOD:WIDTH, such as angle:24:2",
    "date": "date:WIDTH in s, min, h, d, w or y, such as date:30d",
    "place": "place:WIDTH in m or km, such as place:50km",
    "text": "text, or text:ENCODER",
}
_SPEC = re.compile(rf"(?P<columns>.+?)=(?P<kind>{'|'.join(USAGE)})(?::(?P<rest>.+))?", re.DOTALL)
_WIDTH = re.compile(r"([0-9.eE+-]+)\s*([a-z]*)")
_DAYS = {"s": 1 / 86_400, "min": 1 / 1_440, "h": 1 / 24, "d": 1.0, "w": 7.0, "y": 365.25}
_KILOMETRES = {"m": 1e-3, "km": 1.0}
_UNITS: Mapping[str, Mapping[str, float]] = {"date": _DAYS, "place": _KILOMETRES}


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """The kernel of one column, or of two that hold a place."""

    columns: tuple[str, ...]
    kind: str
    width: float = 0.0
    """Standard deviation of a Gaussian: in the column's unit, days, or kilometres."""
    period: float = 0.0
    """After which angles repeat."""
    detail: str = ""
    """File of a taxonomy, encoder of a text, or `idf`."""
    precision: str = ""
    """Of the encoder, once it is settled."""

    @classmethod
    def parse(cls, text: str) -> KernelSpec:
        """Read the text of one option, `COLUMN=KIND...`.

        Raises:
            OptionError: If it is none, a width or period is not over zero, or a place has not one or two columns.
        """
        match = _SPEC.fullmatch(text)
        if match is None:
            raise OptionError(f"--kernel {text}: give COLUMN=KIND, such as {'; '.join(f'COLUMN={one}' for one in USAGE.values())}.")
        kind, rest = match["kind"], match["rest"] or ""
        columns = tuple(match["columns"].split(",")) if kind == "place" else (match["columns"],)
        if len(columns) > 2 or not all(columns):
            raise OptionError(f"--kernel {text}: a place is one column of pairs, or two: LATITUDE,LONGITUDE=place:50km.")
        if kind == "angle":
            period, _, width = rest.partition(":")
            return cls(columns, kind, width=_amount(text, kind, width), period=_amount(text, kind, period))
        if kind in ("number", "date", "place"):
            return cls(columns, kind, width=_amount(text, kind, rest))
        usable = {"category": ("",), "tags": ("", "idf")}.get(kind)
        if (usable is not None and rest not in usable) or (kind == "taxonomy" and not rest):
            raise OptionError(f"--kernel {text}: is not COLUMN={USAGE[kind]}.")
        return cls(columns, kind, detail=rest or (DEFAULT_ENCODER if kind == "text" else ""))

    @property
    def name(self) -> str:
        """Of its columns, for messages."""
        return ",".join(self.columns)


def _amount(text: str, kind: str, written: str) -> float:
    """A number over zero, with the unit that its kind has."""
    units = _UNITS.get(kind, {"": 1.0})
    match = _WIDTH.fullmatch(written.strip())
    try:
        number = float(match[1]) if match is not None and match[2] in units else None
    except ValueError:
        number = None
    if match is None or number is None:
        raise OptionError(f"--kernel {text}: is not COLUMN={USAGE[kind]}.")
    if not 0 < number < math.inf:
        raise OptionError(f"--kernel {text}: {number:g} is no width. Widths and periods are over zero.")
    return number * units[match[2]]


def parse_kernels(texts: Sequence[str]) -> tuple[KernelSpec, ...]:
    """Read all `--kernel` options.

    Raises:
        OptionError: If there is none, one is given twice, or as `KernelSpec.parse`.
    """
    kernels = tuple(KernelSpec.parse(text) for text in texts)
    if not kernels:
        raise OptionError(f"relate needs --kernel, one for each column: {'; '.join(f'COLUMN={one}' for one in USAGE.values())}.")
    if len(set(kernels)) < len(kernels):
        raise OptionError("--kernel: one is given twice. Give each once, and a weight with --weights.")
    return kernels
