"""What --template takes besides a template: a JSON file with a list of them, or the word clip80."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from graphbuild.errors import OptionError
from graphbuild.store.atomic import read_json

CLIP80 = "clip80"
"""The 80 prompts that CLIP was evaluated with on ImageNet (Radford et al., 2021)."""


def read_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Return all templates that the options stand for.

    Raises:
        OptionError: If a file is missing, or holds no list of templates.
    """
    return tuple(template for value in given for template in _expand(value))


def _expand(value: str) -> list[str]:
    if value == CLIP80:
        return files("graphbuild.datasets").joinpath(f"{CLIP80}.txt").read_text(encoding="utf-8").splitlines()
    if not value.endswith(".json") or "{}" in value:
        return [value]
    try:
        templates = read_json(Path(value))
    except FileNotFoundError:
        raise OptionError(f"--template {value}: no such file.") from None
    except ValueError as error:
        raise OptionError(f"--template {value}: not JSON ({error}). It should be a list of templates.") from None
    if not isinstance(templates, list) or not templates or not all(isinstance(one, str) for one in templates):
        raise OptionError(f'--template {value}: it should be a list of templates, such as ["a photo of a {{}}."].')
    return templates
