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
from typing import Any

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
    distances: npt.NDArray[np.float32]
    """Edges of the shortest path between two classes over a hypernym of both; (C, C)."""

    def matrix(self, names: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
        """Return the distances among some classes.

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
        matrix: npt.NDArray[np.float64] = self.distances[np.ix_(chosen, chosen)].astype(np.float64)
        return matrix


def read_hierarchy(path: Path, option: str = "--hierarchy") -> Hierarchy:
    """Read a hierarchy of classes, whichever of the two forms it has.

    Args:
        path: The file.
        option: What named it, for errors.

    Raises:
        SourceError: If the file is missing, or neither form.
    """
    try:
        names, distances = _read_matrix(path) if path.suffix == ".npz" else _read_paths(path)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. {option} takes an .npz of distances, or a .tsv of hypernym paths.") from None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{path}: not distances between classes ({type(error).__name__}: {error}). {option} takes a TSV with a column "
            f"{_PATH} ('entity > ... > tench') and columns such as wnid and name, or an NPZ with wnids and dist."
        ) from None
    return Hierarchy(names, distances)


def _read_matrix(path: Path) -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    with np.load(path, allow_pickle=False) as stored:
        names, distances = [str(name) for name in stored["wnids"]], stored["dist"].astype(np.float32)
    if distances.shape != (len(names), len(names)):
        raise ValueError(f"`dist` is {distances.shape}, but there are {len(names)} `wnids`")
    return {name: place for place, name in enumerate(names)}, distances


def _read_paths(path: Path) -> tuple[dict[str, int], npt.NDArray[np.float32]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        raise ValueError("no row")
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        for column in _NAMES:
            if row.get(column):
                places.setdefault(row[column], place)
    return places, _path_lengths([[part.strip() for part in row[_PATH].split(">")] for row in rows])


def _path_lengths(paths: list[list[str]]) -> npt.NDArray[np.float32]:
    """Steps up from one class to the deepest hypernym that both paths share, and down to the other."""
    numbers: dict[str, int] = {}
    padded = np.full((len(paths), max(map(len, paths))), -1, np.int64)
    for i, path in enumerate(paths):
        padded[i, : len(path)] = [numbers.setdefault(name, len(numbers)) for name in path]
    lengths = np.array([len(path) for path in paths])
    table: npt.NDArray[Any] = np.empty((len(paths), len(paths)), np.float32)
    for i, path in enumerate(paths):
        shared = (padded[:, : len(path)] == padded[i, : len(path)]).cumprod(axis=1).sum(axis=1)
        table[i] = lengths[i] + lengths - 2 * shared
    return table
