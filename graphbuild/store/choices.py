"""Words that the options of both packages choose among: which similarities of a graph are read, and what is made of them."""

from __future__ import annotations

from typing import Literal

Similarity = Literal["stored", "rescored"]
"""Those of the knn stage, or those that a cross-encoder gave to some of its pairs."""
Teacher = Literal["graph", "embeddings"]
"""Stored rows and sketches, or embeddings, whose products are exact."""
Symmetrize = Literal["union", "mutual"]
"""Whether a pair counts as stored if either of its rows stores it, or only if both do."""
Mix = Literal["targets", "similarities"]
"""What is averaged over several graphs: their soft targets, or their similarities, before the softmax."""
OnDevice = Literal["auto", "yes", "no"]
"""Whether data are held on the device; `auto`: on a GPU with room to spare."""
