"""The configuration of a training run: its options, checked, compared with those of an earlier run, and written as TOML."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from train.config.contradictions import refuse_contradictions
from train.config.kinds import check, flag, given_fields, to_toml
from train.config.options import TrainOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(TrainOptions):
    """Options that are within their ranges and go together.

    Raises:
        OptionError: If a value is out of its range, or options contradict each other.
    """

    def __post_init__(self) -> None:
        for name, kind in field_types().items():
            check(name, kind, getattr(self, name))
        refuse_contradictions(self)

    def to_toml(self) -> str:
        """Write every field as TOML; what is None is left out. `read_toml` gives the same values back."""
        lines = [f"{name} = {to_toml(value)}" for name in field_types() if (value := getattr(self, name)) is not None]
        return "\n".join(lines) + "\n"

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which a resumed run (`other`) would compute something else, with both values."""
        strict = [item.name for item in fields(self) if not item.metadata.get("loose")]
        pairs: dict[str, tuple[Any, ...]] = {name: (getattr(self, name), getattr(other, name)) for name in strict}
        pairs["head"] = tuple(tuple(replace(head, graph_dir="") for head in one.heads) for one in (self, other))
        return {name: (getattr(self, name), getattr(other, name)) for name, pair in pairs.items() if pair[0] != pair[1]}


@cache
def field_types() -> Mapping[str, Any]:
    """Name and annotated type of every field, in order."""
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    return {item.name: hints[item.name] for item in fields(TrainConfig)}


def field_groups() -> Mapping[str, str]:
    """Return the objectives that read a field, for those that not all do."""
    return {item.name: item.metadata["group"] for item in fields(TrainConfig) if "group" in item.metadata}


def told_objective(config: TrainConfig) -> str:
    """Return the objective with its options, those at their defaults left out: `xclr, --negatives hard, --queue 64`."""
    given = [f"{flag(name)} {value}" for name, value, objectives in given_fields(config) if config.objective in objectives]
    return ", ".join([config.objective, *given, *(f"--head {head.name}" for head in config.heads)])


@cache
def repeated_by() -> Mapping[str, str]:
    """Return the options that may be given several times, and the field that takes what follows the first value."""
    return {item.metadata["follows"]: item.name for item in fields(TrainConfig) if "follows" in item.metadata}


@cache
def field_docs() -> Mapping[str, str]:
    """Return what every field is, in order: the help text of its option."""
    return {item.name: item.metadata["doc"] for item in fields(TrainConfig)}
