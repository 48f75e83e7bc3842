"""Captions in the form of Karpathy's splits: `dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`."""

from __future__ import annotations

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.json import JsonFormat
from graphbuild.datasets.formats.rows import RowSource

SOURCE = RowSource(
    SourceInfo(
        name="karpathy",
        what="Karpathy's splits of COCO and Flickr (dataset_coco.json and the like): ids are file names, each with its captions; "
        "--keep-columns split keeps the split.",
        size="123,287 pictures of COCO, 31,014 of Flickr30k, 8,000 of Flickr8k, five captions each",
        licence="that of the data sets; see coco and flickr",
        origin="--source: the JSON file, from whoever mirrors it",
    ),
    JsonFormat(),
    (".json",),
    caption_column="sentences",
    id_column="filename",
)
