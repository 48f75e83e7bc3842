"""Conceptual 12M: its public TSV, downloaded, or what img2dataset made of it."""

from __future__ import annotations

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.published.conceptual import ConceptualSource, Publication

_URL = "https://storage.googleapis.com/conceptual_12m/cc12m.tsv"

SOURCE = ConceptualSource(
    SourceInfo(
        name="cc12m",
        what="Conceptual 12M: alt-texts of the web; ids are URLs. The placeholder <PERSON> becomes 'person' unless --replace says "
        "otherwise. --source takes the TSV (url, caption), or the output of img2dataset.",
        size="12,423,374 captions; 2.7 GB to download",
        licence="free for any purpose, with attribution to Google; the pictures are under their owners' terms",
        origin=f"{_URL}, downloaded into data/; --source: files, a folder, a glob or a URL",
    ),
    Publication(
        columns=("url", "caption"),
        url=_URL,
        by_hand=f"fetch {_URL}",
        replacements=("<PERSON>=person",),
        # Its authors state none; this is what Hugging Face's data set script `conceptual_12m` recorded in dataset_infos.json.
        sha256="892b549d493c7e75ade10d46c88c9ddabb097790d912b74cfc0ea4ff035ec2c3",
    ),
)
