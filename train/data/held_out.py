"""Images that a run is not trained on: named by id, a share of its source, or a validation set that lies where it is known.

`train run` leaves out what `--val-ids` and `--val-fraction` name; `train eval` classifies the same images.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.arrays import Bool
from graphbuild.store.graph import Graph
from graphbuild.store.hashes import hash_strings
from graphbuild.store.images import recorded
from graphbuild.system.answers import quoted
from train.config import TrainConfig
from train.data.base import ImageSource
from train.data.sources import CIFAR, recorded_images

_BESIDE = ("val", "validation", "test")
"""Names of a validation set beside the images of a run, the first that is there."""
_EXAMPLES = 3


def held_out_mask(source: ImageSource, ids_file: str | None, fraction: float) -> Bool | None:
    """Return which images of a source are held out, (N,); None if none are asked for.

    A fraction takes the images whose id has a hash in the lowest part of its range: the choice depends on nothing but the id.

    Args:
        source: The images.
        ids_file: Text file with a sample id a line; None: no such list.
        fraction: Share of the images, from 0 to 1.

    Raises:
        OptionError: If the file cannot be read, or nothing or everything would be held out.
        SourceError: If the file names images that the source does not have.
    """
    if ids_file is None and not fraction:
        return None
    mask = np.zeros(len(source), dtype=np.bool_)
    if fraction:
        limit = int(fraction * (1 << 64))
        mask |= hash_strings(source.sample_ids) < limit
    if ids_file is not None:
        wanted = _read_ids(ids_file)
        listed = np.fromiter((name in wanted for name in source.sample_ids), np.bool_, len(source))
        if listed.sum() < len(wanted):
            known = {name for name, here in zip(source.sample_ids, listed, strict=True) if here}
            unknown = sorted(wanted - known)
            if unknown:
                raise SourceError(
                    f"{ids_file}: {len(unknown):,} of {len(wanted):,} ids are no images of {source.name}, such as "
                    f"{', '.join(map(repr, unknown[:_EXAMPLES]))}; its ids look like {source.sample_ids[0]!r}. Check --val-ids."
                )
        mask |= listed
    if mask.all() or not mask.any():
        raise OptionError(
            f"{source.name}: {'all' if mask.any() else 'none'} of the {len(source):,} images would be held out. "
            "Check --val-ids and --val-fraction."
        )
    return mask


def _read_ids(path: str) -> frozenset[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read ({error}). --val-ids takes a text file with a sample id a line.") from None
    return frozenset(line.strip() for line in lines if line.strip())


def find_validation(config: TrainConfig, graph: Graph | None) -> dict[str, Any] | None:
    """Return where a run's validation images are, as arguments of `open_images`; None if no place is known.

    That is CIFAR's test split, what the graph records, or else a folder or file called val, validation or test beside the
    images of the run.

    Args:
        config: Of the run.
        graph: The run's graph, if it has one.
    """
    own = config.data or ""
    if own.partition(":")[0] in CIFAR:
        return {"data": own, "validation": True}
    recorded = recorded_images(graph.manifest.dataset, graph.path, validation=True) if graph else None
    if recorded is not None:
        # Ids are not needed, and the validation files may lack their column.
        return {name: value for name, value in recorded.items() if name != "id_column"}
    images = Path(own)
    if not own or not images.exists():
        return None
    names = [*_BESIDE, *(f"{name}{images.suffix}" for name in _BESIDE if images.is_file())]
    found = next((place for name in names if (place := images.parent / name) != images and place.exists()), None)
    return None if found is None else {"data": str(found), "image_column": config.image_column}


def default_label_column(config: TrainConfig, dataset: Mapping[str, Any], source: ImageSource) -> str | None:
    """Return the column of a run's classes: the run's, else the one that its graph records, else `label`; None if none is there.

    Args:
        config: Of the run.
        dataset: What the graph's manifest says of its data set.
        source: The images.
    """
    exist = source.label_columns()
    images = recorded(dataset)
    named = (config.label_column, images.label_column if images else None, "label")
    return next((str(column) for column in named if column in exist), None)


def eval_command(run_dir: Path, config: TrainConfig, source: ImageSource, graph: Graph | None) -> str:
    """Return the `train eval` command that works for a run; what the user has to name stands there in capitals."""
    command = f"train eval {quoted(run_dir)}"
    if not config.val_ids and not config.val_fraction and not _is_there(find_validation(config, graph)):
        command += " --data HELD_OUT_IMAGES"
    if default_label_column(config, graph.manifest.dataset if graph else {}, source) is None:
        command += " --label-column COLUMN"
    return command


def _is_there(arguments: dict[str, Any] | None) -> bool:
    if arguments is None:
        return False
    data = str(arguments["data"])
    return data.partition(":")[0] in CIFAR or Path(data).exists() or bool(glob.glob(data, recursive=True))  # noqa: PTH207
