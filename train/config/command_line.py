"""Options of `train run` on the command line, made from the fields of `TrainConfig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from train.config import TrainConfig, field_docs, field_groups, field_types, repeated_by
from train.config.kinds import FieldType, flag, split_type


def config_options(*only: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for every field of `TrainConfig`, or for some; what is not given stays out of the parameters' values (None)."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        defaults = TrainConfig()
        # What follows the first value of another option has none of its own.
        own = {name: kind for name, kind in field_types().items() if name not in repeated_by().values()}
        for name, kind in reversed([item for item in own.items() if not only or item[0] in only]):
            form, default = split_type(kind), getattr(defaults, name)
            names = f"{flag(name)}/--no-{flag(name)[2:]}" if form.base is bool else flag(name)
            shown = "" if default in (None, ()) or form.base is bool else f"  [default: {default}]"
            settings: dict[str, Any] = {"type": _click_type(form), "multiple": form.many or (not only and name in repeated_by())}
            command = click.option(names, name, default=None, help=field_docs()[name] + shown, **settings)(command)
        return command

    return add


class _NumberOrWord(click.ParamType[Any]):
    """A number, or one of some words in its place."""

    name = "float"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what stands for the value in the help."""
        return f"[FLOAT|{'|'.join(self._words)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take a word as it is, everything else as a number."""
        return value if value in self._words else click.FLOAT.convert(value, param, ctx)


class GroupedCommand(click.Command):
    """A command whose help lists the options that only some objectives read under their names."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of all objectives, then those of some."""
        groups: dict[str, list[tuple[str, str]]] = {"": []}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(field_groups().get(param.name or "", ""), []).append(record)
        for name, records in groups.items():
            with formatter.section(f"Options of {name}" if name else "Options"):
                formatter.write_dl(records)


def _click_type(form: FieldType) -> click.ParamType[Any]:
    if form.choices:
        return click.Choice(form.choices)
    if form.words:
        return _NumberOrWord(form.words)
    kinds: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL, str: click.STRING}
    return kinds[form.base]
