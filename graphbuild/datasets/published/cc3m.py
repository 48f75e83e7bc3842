"""Conceptual Captions (3M): the publisher's TSV, fetched by hand, or what img2dataset made of it."""

from __future__ import annotations

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.published.conceptual import ConceptualSource, Publication

_PAGE = "https://ai.google.com/research/ConceptualCaptions/download"

SOURCE = ConceptualSource(
    SourceInfo(
        name="cc3m",
        what="Conceptual Captions: cleaned alt-texts of the web; ids are URLs. --source takes the TSV (caption, url), or the "
        "output of img2dataset.",
        size="3,318,333 captions in the train split",
        licence="free for any purpose, with attribution to Google; the pictures are under their owners' terms",
        origin=f"--source: Train_GCC-training.tsv, which is offered at {_PAGE}",
    ),
    Publication(
        columns=("caption", "url"),
        url=None,
        by_hand=f"fetch Train_GCC-training.tsv at {_PAGE} (its links last some hours), then give --source Train_GCC-training.tsv.",
    ),
)
