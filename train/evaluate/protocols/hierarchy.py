"""Distances between classes in WordNet, from a matrix of them or from each class's path of hypernyms.

Two forms are read: an `.npz` with `wnids` (C,) and `dist` (C, C), and a TSV with a column `hypernym_path`
("entity > ... > goldfish") beside columns that name the class (`wnid`, `name`, `simple_name`, `index`).
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.errors import SourceError

_NAMES = ("wnid", "name", "simple_name", "clip_name", "index", "label")
_PATH = "hypernym_path"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Distances between classes, and by which names each is known."""

    places: dict[str, int]
    """Place in the matrix, by any of the class's names."""
    distances: npt.NDArray[np.float64]
    """Edges of the shortest path between two classes; (C, C)."""

    def matrix(self, names: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
        """Distances among some classes.

        Args:
            names: For each class the names that it may be known by, the surest first.

        Raises:
            SourceError: If a class is not in the hierarchy.
        """
        found = [next((self.places[name] for name in known if name in self.places), None) for known in names]
        missing = [known[0] for known, place in zip(names, found, strict=True) if place is None]
        if missing:
            shown = ", ".join(repr(name) for name in missing[:3])
            raise SourceError(
                f"--hierarchy: {len(missing)} of {len(names)} classes are not in it ({shown}; it has such as "
                f"{', '.join(repr(name) for name in list(self.places)[:3])}). Name classes as it does, or leave it out."
            )
        chosen = np.array(found)
        matrix: npt.NDArray[np.float64] = self.distances[np.ix_(chosen, chosen)]
        return matrix


def read_hierarchy(path: Path) -> Hierarchy:
    """Read either form.

    Raises:
        SourceError: If the file is missing, or neither form.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file. --hierarchy takes an .npz of distances, or a .tsv of hypernym paths.")
    return _read_matrix(path) if path.suffix == ".npz" else _read_paths(path)


def _read_matrix(path: Path) -> Hierarchy:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, distances = [str(name) for name in stored["wnids"]], stored["dist"].astype(np.float64)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a matrix of distances ({error}). It needs the arrays `wnids` and `dist`.") from None
    if distances.shape != (len(names), len(names)):
        raise SourceError(f"{path}: `dist` is {distances.shape}, but there are {len(names)} `wnids`.")
    return Hierarchy({name: place for place, name in enumerate(names)}, distances)


def _read_paths(path: Path) -> Hierarchy:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or _PATH not in rows[0]:
        raise SourceError(f"{path}: no column {_PATH!r}. It takes the form 'entity > ... > goldfish'.")
    lines = [[part.strip() for part in (row[_PATH] or "").split(">")] for row in rows]
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        for column in _NAMES:
            if row.get(column):
                places.setdefault(row[column], place)
    return Hierarchy(places, np.array([[_path_length(one, other) for other in lines] for one in lines], dtype=np.float64))


def _path_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Edges from one class up to the deepest hypernym that both share, and down to the other."""
    shared = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        shared += 1
    return len(one) + len(other) - 2 * shared
