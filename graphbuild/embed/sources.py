"""What `graphbuild embed --dataset` takes, described: the answer of `graphbuild datasets`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.registry import NAMES, get_source


@dataclass(frozen=True, slots=True)
class Descriptions:
    """Every data set, in the order of the registry."""

    infos: tuple[SourceInfo, ...]

    def summary(self) -> str:
        """Return one paragraph a data set."""
        return "\n".join(
            f"{info.name}\n    {info.what}\n    size: {info.size}\n    licence: {info.licence}\n    from: {info.origin}"
            for info in self.infos
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Return the same, for scripts."""
        return [asdict(info) for info in self.infos]


def describe_all() -> Descriptions:
    """Return what every data set is, how large, under what licence, and where it comes from."""
    return Descriptions(tuple(get_source(name).info for name in NAMES))
