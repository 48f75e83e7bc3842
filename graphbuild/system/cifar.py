"""CIFAR-10 and CIFAR-100 in the folder layout of torchvision, for both packages; the ids of its pictures are `<split>/<index>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphbuild.errors import SourceError, one_line


def load_cifar(kind: str, root: Path, *, train: bool, download: bool) -> Any:
    """Load one split: its `data` (N, 32, 32, 3), `targets` and `classes`, as torchvision reads them.

    Args:
        kind: `cifar10` or `cifar100`.
        root: The folder that its own folder lies in.
        train: The train split, else the test split.
        download: Fetch it if it is not there.

    Raises:
        SourceError: If it is not there, is damaged, or cannot be downloaded.
    """
    from torchvision import datasets

    loader = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    try:
        return loader(str(root), train=train, download=False)
    except Exception as error:
        reason = error
    if download:
        try:
            return loader(str(root), train=train, download=True)
        # urllib, hashing and unpacking raise a dozen kinds of error here.
        except Exception as error:
            reason = error
    what = "is not here, and could not be downloaded" if download else "is not here, or damaged"
    raise SourceError(
        f"{root}: {kind} {what} ({type(reason).__name__}: {one_line(str(reason))[:200]}). "
        f"Unpack its Python version into a folder, and name that: --source FOLDER, or --data {kind}:FOLDER for training."
    )


def cifar_ids(count: int, *, train: bool) -> list[str]:
    """Return the sample ids of a split of so many pictures."""
    split = "train" if train else "test"
    return [f"{split}/{index}" for index in range(count)]
