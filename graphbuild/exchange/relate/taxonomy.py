"""Categories in a hierarchy: path similarity, as WordNet's interfaces define it.

Shape letters: C categories, n categories below an ancestor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import SourceError, one_line
from graphbuild.system.decoding import NotText, read_text

_MOST = 10_000
"""Categories: their table takes 8 bytes a pair."""


def path_similarities(path: Path, names: list[str]) -> NDArray[np.float64]:
    """Return 1 / (1 + edges of the shortest way over a common ancestor), 0 where there is none; (C, C).

    Args:
        path: Lines of a category and its parent with a tab between; a category may have several parents.
        names: The C categories, each of which the file must have.

    Raises:
        SourceError: If the file cannot be read or has a circle, or a category is missing from it.
    """
    parents = _read(path)
    known = parents.keys() | {above for some in parents.values() for above in some}
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3])
        raise SourceError(f"{path}: {len(unknown):,} of {len(names):,} categories are not in it, such as {shown}. Add them.")
    if len(names) > _MOST:
        raise SourceError(f"{path}: {len(names):,} categories are compared through it, and {_MOST:,} is the most.")
    below: dict[str, list[tuple[int, int]]] = {}
    for place, name in enumerate(names):
        for ancestor, steps in _ancestors(name, parents, path).items():
            below.setdefault(ancestor, []).append((place, steps))
    shortest_CC = np.full((len(names), len(names)), np.inf)
    for found in below.values():
        places_n, steps_n = np.array(found).T
        block = np.ix_(places_n, places_n)
        shortest_CC[block] = np.minimum(shortest_CC[block], np.add.outer(steps_n, steps_n))
    return 1 / (1 + shortest_CC)


def _read(path: Path) -> dict[str, list[str]]:
    try:
        lines = read_text(path).decode("utf-8").splitlines()
    except (OSError, NotText, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: the taxonomy cannot be read ({one_line(str(error))}). Give lines of CATEGORY<tab>PARENT."
        ) from None
    parents: dict[str, list[str]] = {}
    for row, line in enumerate(lines):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 2 or not all(parts):
            raise SourceError(f"{path}: line {row + 1:,} is not CATEGORY<tab>PARENT.")
        parents.setdefault(parts[0], []).append(parts[1])
    return parents


def _ancestors(name: str, parents: dict[str, list[str]], path: Path) -> dict[str, int]:
    """Each ancestor, the category itself among them, and the fewest steps up to it."""
    steps, level, depth = {name: 0}, [name], 0
    while level:
        depth += 1
        level = list(dict.fromkeys(parent for one in level for parent in parents.get(one, ())))
        if name in level:
            raise SourceError(f"{path}: {name!r} is its own ancestor. A taxonomy has no circles.")
        level = [one for one in level if one not in steps]
        steps |= dict.fromkeys(level, depth)
    return steps
