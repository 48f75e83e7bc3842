"""Where the pictures of a data set are, as `graph.json` records it, for all that shows them or trains on them."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["parquet", "webdataset", "imagefolder", "img2dataset", "hf", "cifar10", "cifar100"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """One place of pictures."""

    kind: Kind
    path: str
    """A file, a folder or a pattern; relative to the graph directory if inside it, else absolute. Of hf, FOLDER:SPLIT."""
    image_column: str | None = None
    id_column: str | None = None
    """Column, or key of the JSON, of the sample ids; None: the source's own."""
    label_column: str | None = None
    val: str | None = None
    """The validation pictures, as `path`."""
    note: str | None = None
    """What is to be said wherever the pictures are shown."""

    def record(self) -> dict[str, Any]:
        """Return it as `Manifest.dataset["images"]` holds it."""
        return {name: value for name, value in asdict(self).items() if name != "note" or value is not None}

    def at(self, graph_dir: Path) -> Images:
        """Return the same with absolute paths."""
        return replace(self, path=_resolve(self.path, graph_dir), val=None if self.val is None else _resolve(self.val, graph_dir))


def recorded(dataset: Mapping[str, Any]) -> Images | None:
    """Return what a manifest's `dataset` says about its pictures; None if it records none.

    Args:
        dataset: `Manifest.dataset`.
    """
    held = dataset.get("images")
    if not held:
        return None
    known = {item.name for item in fields(Images)}
    return Images(**{name: value for name, value in held.items() if name in known})


def recorded_for_copy(dataset: Mapping[str, Any], graph_dir: Path) -> dict[str, Any] | None:
    """Return what a graph that is made of another one records of its pictures, which stay where they are.

    Args:
        dataset: `Manifest.dataset` of the other one.
        graph_dir: Its directory.
    """
    images = recorded(dataset)
    return images.at(graph_dir.absolute()).record() if images else None


def place_of(path: str | Path, graph_dir: Path) -> str:
    """Return a path or pattern as the manifest records it: relative if inside the graph directory, else absolute."""
    absolute, root = Path(path).absolute(), graph_dir.absolute()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def _resolve(path: str, graph_dir: Path) -> str:
    if Path(path).is_absolute():
        return path
    plain = graph_dir / path
    # Signs in the graph directory's own name are no pattern.
    return str(plain) if plain.exists() else f"{glob.escape(str(graph_dir))}/{path}"
