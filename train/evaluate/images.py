"""Images of an evaluation: those that a run was trained on, those that it was not, and a digest of each."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.arrays import Bool
from graphbuild.store.graph import Graph
from graphbuild.system.progress import say
from train.config import TrainConfig
from train.data.base import Encoded, ImageSource
from train.data.budget import trained_mask
from train.data.held_out import find_validation, held_out_mask
from train.data.join import join
from train.data.prepare import absolute, is_parquet
from train.data.repeats import rules_of_graph
from train.data.sources import open_images
from train.data.subset import Subset
from train.evaluate.options import EvalOptions

_READ_AT_ONCE = 1024


class Images:
    """An image source with a digest of every image, taken once."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    @cached_property
    def digests(self) -> npt.NDArray[np.uint64]:
        """xxh3-64 of every image as it is stored; 0 where the source holds nothing; (N,)."""
        found = np.zeros(len(self.source), np.uint64)
        for start in range(0, len(found), _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, len(found)))
            found[start : rows.stop] = [_digest(item) for item in self.source.encoded(rows)]
        return found

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of all images and their ids."""
        hasher = xxhash.xxh3_128(self.digests.tobytes())
        for name in self.source.sample_ids:
            hasher.update(f"{name}\n".encode())
        return hasher.hexdigest()


def _digest(item: Encoded) -> int:
    content = b"" if item is None else item if isinstance(item, bytes) else np.ascontiguousarray(item).tobytes()
    return xxhash.xxh3_64_intdigest(content) if content else 0


class RunImages:
    """The images of a run: those that it was trained on, and those that it was not."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    @cached_property
    def _all(self) -> ImageSource:
        config = self._config
        if config.data is None:
            raise OptionError("the run does not record its images. Name images to learn from with --train-data.")
        parquet = is_parquet(config.data)
        column = config.image_column if parquet else None
        rules = rules_of_graph(config.graph_dir)
        return open_images(absolute(config.data), image_column=column, id_column=config.id_column, **rules)

    @cached_property
    def _graph(self) -> Graph | None:
        return Graph.open(self._config.graph_dir) if self._config.graph_dir else None

    @cached_property
    def _trained(self) -> Bool | None:
        """Which images the run's options leave for training; None: all."""
        config = self._config
        # Only a budget asks the graph here: without one, `_known` tells of a graph that is gone.
        dataset = self._graph.manifest.dataset if config.budget and self._graph is not None else {}
        return trained_mask(self._all, config, dataset)

    def train(self, options: EvalOptions) -> ImageSource:
        """Return the images to learn from: those named, else the ones that the run was trained on and nobody held out."""
        if options.train_data is not None:
            return self._open(options.train_data)
        source = self._all
        kept = np.ones(len(source), np.bool_)
        trained = self._trained
        kept &= True if trained is None else trained
        held_out = held_out_mask(source, options.val_ids, options.val_fraction)
        kept &= True if held_out is None else ~held_out
        kept &= self._known(source)
        if not kept.any():
            raise OptionError(f"{source.name}: no image is left to learn from. Check --val-ids and --val-fraction.")
        return source if kept.all() else Subset(source, np.flatnonzero(kept))

    def _known(self, source: ImageSource) -> Bool:
        """Tell which images all graphs of the run know; all, where the run has none."""
        known = np.ones(len(source), np.bool_)
        try:
            for path in self._config.graphs:
                known &= np.isin(np.arange(len(source)), join(source, Graph.open(path), allow_missing=True).indices)
        except ArtifactError as error:
            raise ArtifactError(
                f"which images of {source.name} the run was trained on is not known without its graph ({error}) "
                "Restore it, or name images to learn from with --train-data."
            ) from None
        return known

    def test(self, options: EvalOptions) -> ImageSource:
        """Return the images to classify: those named, else those held out of the training, else a validation set that is known."""
        config = self._config
        if options.data is not None:
            return self._open(options.data, validation=True)
        for ids, fraction in ((options.val_ids, options.val_fraction), (config.val_ids, config.val_fraction)):
            held_out = held_out_mask(self._all, ids, fraction) if ids or fraction else None
            if held_out is not None:
                self._warn_of_trained(held_out, options)
                return Subset(self._all, np.flatnonzero(held_out))
        found = find_validation(config, self._graph)
        if found is None:
            raise OptionError(
                f"no validation images are known of {config.data or 'this run'}. Name images to classify with --data, or some of "
                "the run's with --val-ids."
            )
        source = open_images(**{**found, "data": absolute(str(found["data"]))})
        say(f"{source.name}: {len(source):,} images to classify")
        return source

    def _warn_of_trained(self, held_out: Bool, options: EvalOptions) -> None:
        """Say how many of the images to classify the encoder was trained on."""
        own = self._trained
        trained = held_out & self._known(self._all) & (True if own is None else own)
        if trained.any() and (options.val_ids or options.val_fraction):
            say(
                f"warning: the run was trained on {int(trained.sum()):,} of the {int(held_out.sum()):,} images to classify. "
                "`train run --val-ids` or `--val-fraction` leaves them out."
            )

    def _open(self, data: str, *, validation: bool = False) -> ImageSource:
        column = self._config.image_column if is_parquet(data) else None
        return open_images(absolute(data), image_column=column, validation=validation)
