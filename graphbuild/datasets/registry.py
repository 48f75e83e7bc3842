"""Data sources and their registry. A source's module is loaded only when it is used or described."""

from __future__ import annotations

import importlib

from graphbuild.datasets.base import Source
from graphbuild.errors import SourceError

_MODULES = {
    "parquet": "formats.parquet",
    "csv": "formats.csv",
    "tsv": "formats.tsv",
    "jsonl": "formats.jsonl",
    "json": "formats.json",
    "lines": "formats.lines",
    "img2dataset": "formats.img2dataset",
    "webdataset": "formats.webdataset",
    "hf": "formats.hf",
    "vectors": "formats.vectors",
    "cc3m": "published.cc3m",
    "cc12m": "published.cc12m",
    "coco": "published.coco",
    "flickr": "published.flickr",
    "karpathy": "published.karpathy",
    "imagefolder": "formats.imagefolder",
    "imagenet": "published.imagenet",
    "cifar10": "published.cifar10",
    "cifar100": "published.cifar100",
    "scenes": "scenes.source",
}
"""Where the constant SOURCE of each data set is."""
NAMES = tuple(_MODULES)
"""What --dataset takes."""


def get_source(name: str) -> Source:
    """Return the source of a data set's name.

    Raises:
        SourceError: If there is none of this name; the names are listed.
    """
    if name not in NAMES:
        raise SourceError(f"no data set {name!r}; --dataset takes: {', '.join(NAMES)} (see `graphbuild datasets`).")
    source: Source = importlib.import_module(f"graphbuild.datasets.{_MODULES[name]}").SOURCE
    return source
