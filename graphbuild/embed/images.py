"""A graph of pictures: their vectors by an image encoder, in the shards of any graph.

Every picture is a text of its own: its caption where a column is named, else its id. Pictures that cannot be decoded are left out,
counted and listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.datasets.formats.pictures import Pictures
from graphbuild.datasets.formats.vectors import NAME as VECTORS
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.image_files import FORMS, ImageSpec, is_image_encoder, other_here
from graphbuild.embed.image_shard import embed_pictures
from graphbuild.embed.sample_run import SampleRun
from graphbuild.embed.shard import embed_missing, embed_own, shard_keys
from graphbuild.embed.vectors import NOT_FOR_SAMPLES, option_of
from graphbuild.errors import OptionError, SourceError
from graphbuild.store.digests import digest_json
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import Part
from graphbuild.store.stage import Made, run_stage
from graphbuild.system.cluster import Workers
from graphbuild.system.cores import available_cores
from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb
from graphbuild.system.progress import progress

IMAGES = "images"
"""What --from takes, beside captions."""
_LISTED = 100
_STARTS, _UNREADABLE = "starts", "unreadable_pictures"


def require_image_options(config: EmbedConfig) -> None:
    """Refuse what applies to captions alone where pictures are embedded, and image encoders where captions are.

    Raises:
        OptionError: Naming the option.
    """
    if config.embedded != IMAGES:
        if config.image_column is not None:
            raise OptionError(f"--image-column names pictures to embed. Add --from {IMAGES}, or leave it out.")
        if config.dataset != VECTORS and is_image_encoder(config.encoder):
            raise OptionError(
                f"--encoder {config.encoder}: an image encoder reads no captions. Add --from {IMAGES}, or name another."
            )
        return
    if config.dataset == VECTORS:
        raise OptionError(f"--from {IMAGES}: --dataset {VECTORS} has vectors already. Leave one of them out.")
    default = EmbedConfig(dataset=config.dataset)
    for name in (*NOT_FOR_SAMPLES, "on_duplicate"):
        if name != "skip_broken" and getattr(config, name) != getattr(default, name):
            raise OptionError(f"--{option_of(name)} does not apply to --from {IMAGES}: no caption is read. Leave it out.")
    if not is_image_encoder(config.encoder):
        raise OptionError(f"--from {IMAGES}: --encoder {config.encoder} is no image encoder. Name one: {FORMS}.")


class ImageRun(SampleRun):
    """One call of `build_embeddings` for pictures."""

    def __init__(
        self, graph_dir: Path, config: EmbedConfig, manifest: Manifest, source: OpenSource, pictures: Pictures, spec: ImageSpec
    ) -> None:
        self._pictures, self._spec = pictures, spec
        self._starts: list[tuple[int, int]] = []
        self._unreadable: list[dict[str, str]] = []
        self._unreadable_count = 0
        super().__init__(graph_dir, config, manifest, replace(source, read=self._readable))

    def _text_config(self) -> dict[str, Any]:
        return {**super()._text_config(), "from": IMAGES, "image_column": self._pictures.image_column}

    def _write_texts(self, key: str) -> Made:
        self._starts, self._unreadable, self._unreadable_count = [], [], 0
        made = super()._write_texts(key)
        if self._unreadable_count:
            self._manifest.counts[_UNREADABLE] = self._unreadable_count
        return Made(made.files, {_STARTS: self._starts, _UNREADABLE: self._unreadable})

    def _readable(self) -> Iterator[CaptionBatch]:
        """Samples whose picture can be decoded; where each shard begins is kept for the workers."""
        count = 0
        with progress("looking at pictures", None, unit="pictures") as meter, ThreadPoolExecutor(available_cores()) as pool:
            for file, batch, contents in self._pictures.read():
                kept = []
                for row, why in enumerate(pool.map(_problem, contents)):
                    if why is not None:
                        self._leave_out(batch.place(row), why)
                        continue
                    if count % self._config.shard_size == 0:
                        self._starts.append((file, batch.row_in_file(row)))
                    count += 1
                    kept.append(row)
                meter.advance(len(contents))
                yield _take(batch, kept)
        if not count:
            raise SourceError(
                f"{', '.join(self._config.sources)}: none of the {self._unreadable_count:,} pictures can be decoded "
                f"({self._unreadable[0]['where']}: {self._unreadable[0]['why']}). Check --source and --image-column."
                if self._unreadable
                else f"{', '.join(self._config.sources)}: no pictures. Check --source."
            )

    def _leave_out(self, where: str, why: str) -> None:
        self._unreadable_count += 1
        if len(self._unreadable) < _LISTED:
            self._unreadable.append({"where": where, "why": why})

    def _describe_dataset(self) -> dict[str, Any]:
        images = self._source.images
        return {**super()._describe_dataset(), "from": IMAGES, "images": images.record() if images else None}

    def _describe_vectors(self) -> dict[str, Any]:
        """The encoder, for the manifest."""
        spec = self._spec
        return {
            "name": spec.name,
            "revision": None,
            "sha256": spec.sha256,
            "dim": spec.dim,
            "max_tokens": 0,
            "precision": spec.precision,
            "transform": spec.transform,
            "images": True,
        }

    def _embed_options(self) -> tuple[dict[str, Any], dict[str, str]]:
        config = {
            **self._spec.identity(),
            "pictures": digest_json(self._source.digests),
            "shard_size": self._config.shard_size,
        }
        return config, self._manifest.text_digests()

    def embed(self) -> bool:
        """Write one vector a picture; returns whether anything was missing."""
        config, inputs = self._embed_options()

        def work(_key: str) -> Made:
            made = self._embed_shards(config, inputs)
            self._manifest.encoder = self._describe_vectors()
            return made

        return run_stage(self._graph_dir, self._manifest, "embed", config, inputs, work, overwrite=self._config.overwrite)

    def embed_part(self, part: Part) -> tuple[int, int]:
        """Write the shards of a part; returns how many were written, and how many of all are still missing."""
        keys = shard_keys(self._manifest, *self._embed_options())
        return embed_own(self._graph_dir, keys, embed_pictures, self._arguments, part=part, unit="pictures")

    def _embed_shards(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Made:
        return embed_missing(
            self._graph_dir,
            shard_keys(self._manifest, config, inputs),
            embed_pictures,
            self._arguments,
            workers=lambda _shards, _left: Workers(count=self._config.workers or 0, scheduler=self._config.scheduler),
            check=partial(other_here, self._spec),
            count=self._manifest.counts["texts"],
            unit="pictures",
        )

    def _arguments(self, index: int, key: str) -> tuple[Any, ...]:
        """What `embed_pictures` is given for a shard."""
        start = self._manifest.stages["text"].facts[_STARTS][index]
        return str(self._graph_dir.absolute()), index, self._spec, self._pictures, tuple(start), key


def _problem(content: bytes | None) -> str | None:
    """Why a picture cannot be decoded; None if it can. JPEGs are decoded at an eighth, which finds truncated ones as well."""
    try:
        to_rgb(open_picture(content), at_least=1)
    except UnreadablePicture as error:
        return str(error)
    return None


def _take(batch: CaptionBatch, rows: list[int]) -> CaptionBatch:
    """Some samples of a batch, each with one caption: the first that says something, else its id."""
    captions = [next((one for one in batch.captions[row] if one and one.strip()), batch.sample_ids[row]) for row in rows]
    # Repaired captions are counted whether their picture can be decoded or not.
    return replace(batch.take(rows), captions=[[one] for one in captions], invalid_rows=batch.invalid_rows)
