"""A graph directory to look at: what `graphbuild.open` gives. Its tables, the neighbours of any text, and its health."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import polars as pl

from graphbuild.embed.nearest import NearestTexts
from graphbuild.errors import OptionError
from graphbuild.quality.health.measure import check_health
from graphbuild.quality.health.result import Health
from graphbuild.store import schemas
from graphbuild.store.arrays import Float32
from graphbuild.store.choices import Symmetrize
from graphbuild.store.frames import RANK, SIMILARITY, Frames
from graphbuild.store.neighbors import Rows
from graphbuild.store.tables import find_text
from graphbuild.targets.samples import Captions, batch_similarity
from graphbuild.targets.softmax import Reals, apply_options, two_view_target


class GraphView(Frames):
    """A graph directory, to look at. Made by `graphbuild.open`."""

    @cached_property
    def _nearest(self) -> dict[str | None, NearestTexts]:
        """What was opened, by the encoder that was named."""
        return {}

    def neighbors(self, text: str | int, *, count: int = 10, encoder: str | None = None) -> pl.DataFrame:
        """Return the nearest texts of a text.

        Args:
            text: A text id, or a text. One that the graph holds is looked up; any other is embedded by the graph's encoder.
            count: How many; no more than are stored of a text in the graph.
            encoder: Name or folder of the graph's encoder, which must be named if it is not the built-in one.

        Returns:
            rank, text_id, similarity, text; nearest first.

        Raises:
            OptionError: If there is no such text id, the text is blank, or the encoder must be named.
            ArtifactMismatch: If a text must be embedded and the encoder at hand is not the graph's.
        """
        text_id = text if isinstance(text, int) else self._find(text)
        if text_id is None:
            if encoder not in self._nearest:
                self._nearest[encoder] = NearestTexts.open(self.path, verify=self._verify, encoder=encoder)
            found = self._nearest[encoder].find(str(text), count=count).found
            ids, values = [near.text_id for near in found], [near.similarity for near in found]
            return _ranked(ids, values).with_columns(pl.Series(schemas.TEXT, [near.text for near in found], dtype=pl.String))
        row = self._row(text_id)
        ids, values = row.neighbor_ids[0, :count].tolist(), row.similarities[0, :count].astype(float).tolist()
        frame = _ranked(ids, values)
        return frame.join(self.texts_of(ids), on=schemas.TEXT_ID, how="left", maintain_order="left")

    def similarity(
        self,
        sample_ids: Sequence[str],
        *,
        absent: float | None = None,
        symmetrize: Symmetrize = "union",
        captions: Captions = "draw",
        seed: int = 0,
        epoch: int = 0,
    ) -> Float32:
        """Compute the similarities among samples, as a training step takes them; in NumPy. `graphbuild.torch` is for loops.

        >>> import graphbuild
        >>> graph = graphbuild.open(example_graph)
        >>> graph.similarity(["sample-0-0", "sample-1-0", "sample-2-0"]).shape
        (3, 3)

        Args:
            sample_ids: The samples; (B,).
            absent: What a pair counts as that the graph does not store; None takes the sketch.
            symmetrize: Whether a pair counts as stored if either of its rows stores it (`union`), or only if both do (`mutual`).
            captions: What a sample with several captions shows: one, drawn by (seed, epoch), or the `average` over all.
            seed: Of the draw among captions.
            epoch: Of the draw among captions.

        Returns:
            G, (B, B) float32: 1 on the diagonal and between samples of one text.

        Raises:
            SourceError: If the graph does not know all samples.
            OptionError: If the graph has no sketch and no constant is given.
        """
        return batch_similarity(
            self.graph, sample_ids, absent=absent, symmetrize=symmetrize, captions=captions, seed=seed, epoch=epoch
        )

    def soft_targets(
        self,
        sample_ids: Sequence[str],
        *,
        tau_s: float = 0.1,
        min_similarity: float | None = None,
        own_weight: float = 0.0,
        **options: Any,
    ) -> Reals:
        """Compute the soft target of a batch with two views of each sample; in NumPy.

        >>> import graphbuild
        >>> graph = graphbuild.open(example_graph)
        >>> graph.soft_targets(["sample-0-0", "sample-1-0", "sample-2-0"], tau_s=0.1).shape
        (6, 6)

        Args:
            sample_ids: The samples; (B,).
            tau_s: Temperature of the target.
            min_similarity: Pairs below it are left out.
            own_weight: Share that is given to the own view; the rest stays soft.
            options: Those of `similarity`.

        Returns:
            (2B, 2B) float32; row i and row B + i are the views of sample i. Rows sum to 1, and the diagonal is 0.

        Raises:
            SourceError: If the graph does not know all samples.
            OptionError: If a value is out of its range.
        """
        similarity = self.similarity(sample_ids, **options)
        shaped = apply_options(similarity, min_similarity=min_similarity, own_weight=own_weight, tau_s=tau_s)
        return two_view_target(shaped, tau_s)

    def health(self, **options: Any) -> Health:
        """Measure how good the graph is; see `graphbuild.quality.health.measure.check_health` for the options."""
        return check_health(self, **options)

    def _find(self, text: str) -> int | None:
        shards = self.manifest.require("text", self.path).in_folder(schemas.TEXTS)
        return find_text(self.path, shards, text, verify=self._verify)

    def _row(self, text_id: int) -> Rows:
        if not 0 <= text_id < self.graph.n_texts:
            raise OptionError(f"{self.path}: no text_id {text_id}; they run from 0 to {self.graph.n_texts - 1:,}.")
        return self.graph.row(text_id)


def _ranked(ids: list[int], similarities: list[float]) -> pl.DataFrame:
    """rank, text_id and similarity, nearest first."""
    schema = {RANK: pl.Int32, schemas.TEXT_ID: pl.Int32, SIMILARITY: pl.Float32}
    return pl.DataFrame([range(1, len(ids) + 1), ids, similarities], schema=schema)
