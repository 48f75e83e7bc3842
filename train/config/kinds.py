"""Types of options: bounds, choices, and how a value is checked and written as TOML."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from graphbuild.errors import OptionError

CONTRASTIVE = ("xclr", "simclr", "supcon")
WITHOUT_NEGATIVES = ("vicreg", "barlow", "simsiam", "lejepa")
LOOSE = {"loose": True}
"""Marks a field that may change when a run is resumed: it changes no number that the run computes."""
TARGET = {"group": "a target by the graph"}
"""Marks a field that objectives with such a target read."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number; `open_low` leaves the lower bound itself out."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value lies within; NaN never does."""
        return (value > self.low if self.open_low else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {_shown(self.low)}"
        return low if math.isinf(self.high) else f"{low} and at most {_shown(self.high)}"


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True, slots=True)
class FieldType:
    """A field's type taken apart."""

    base: type
    choices: tuple[str, ...] = ()
    range: Range | None = None
    optional: bool = False
    words: tuple[str, ...] = ()
    """What may stand in place of a number."""
    many: bool = False
    """Whether it is a tuple of such values."""


def doc(text: str, marks: Mapping[str, Any] = types.MappingProxyType({})) -> Mapping[str, Any]:
    """Return the metadata of a field: the help text of its option, and what else is said of it."""
    return {"doc": text, **marks}


def given_fields(config: Any) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Give the fields that are not at their defaults: name, value, and the group that reads it, a name or several."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value != item.default:
            yield item.name, value, tuple(item.metadata.get("group", "").split(", "))


def split_type(kind: Any) -> FieldType:
    """Take `Annotated`, `Literal` and `| None` apart."""
    if get_origin(kind) in (typing.Union, types.UnionType):
        inner, *words = [item for item in get_args(kind) if item is not type(None)]
        optional = type(None) in get_args(kind)
        return dataclasses.replace(
            split_type(inner), optional=optional, words=tuple(word for kind in words for word in get_args(kind))
        )
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)
        return FieldType(base, range=limits)
    if get_origin(kind) is tuple:
        return dataclasses.replace(split_type(get_args(kind)[0]), many=True)
    if get_origin(kind) is Literal:
        return FieldType(str, choices=get_args(kind))
    return FieldType(kind)


def flag(name: str) -> str:
    """Return the option of a field."""
    return "--" + name.replace("_", "-")


def check(name: str, kind: Any, value: Any) -> None:
    """Make sure that a value is of its field's type and within its range.

    Raises:
        OptionError: If it is not.
    """
    form = split_type(kind)
    if value is None and form.optional:
        return
    if form.many:
        if type(value) is not tuple or not all(type(item) is form.base for item in value):
            raise OptionError(f"{flag(name)}: {value!r} is not a list of {form.base.__name__}.")
        return
    if form.words and isinstance(value, str) and value in form.words:
        return
    numeric = form.base is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and type(value) is not form.base:
        raise OptionError(f"{flag(name)}: {value!r} is not {'an' if form.base is int else 'a'} {form.base.__name__}.")
    if form.choices and value not in form.choices:
        raise OptionError(f"{flag(name)}: {value!r} is none of {', '.join(form.choices)}.")
    if form.range and not form.range.holds(value):
        raise OptionError(f"{flag(name)}: {value} is not {form.range}.")
    # -inf is a value of --absent: such pairs are left out of the target.
    if form.base is float and (math.isnan(value) or value == math.inf):
        raise OptionError(f"{flag(name)}: {value} is not a finite number.")


def to_toml(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(to_toml, value))}]"
    # A JSON string is a TOML basic string, once DEL is escaped, which JSON leaves alone.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
