"""Configuration files: TOML in, a configuration out."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError
from train.config.checked import TrainConfig, field_types, repeated_by


def read_toml(path: Path) -> dict[str, Any]:
    """Read the values of a configuration file, still unchecked except for their names.

    Raises:
        OptionError: If it cannot be read, is not TOML, or holds an unknown key (the nearest known one is named).
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not TOML ({error}).") from None
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}. --config takes a TOML file such as a run's config.toml.") from None
    unknown = [key for key in values if key not in field_types()]
    if unknown:
        raise OptionError(f"{path}: unknown key {unknown[0]!r}{_did_you_mean(unknown[0])}")
    return values


def _did_you_mean(key: str) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), field_types(), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known keys: {', '.join(field_types())}."


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Load a configuration from a TOML file, if there is one, and values that go before it.

    Raises:
        OptionError: If a key is unknown or a value out of range.
    """
    return TrainConfig(**{**_spread(read_toml(path) if path else {}), **_spread(overrides)})


def _spread(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples; of several graphs of one option, the first, and the others where they belong."""
    spread = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, other in repeated_by().items():
        if isinstance(given := spread.get(name), tuple):
            spread |= {name: given[0] if given else None, other: given[1:]}
    return spread
