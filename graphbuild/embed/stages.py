"""The stages of `embed` that an encoder takes part in: texts and samples, and embeddings.

One shard of texts is one task. Workers write shards and their receipts; only the client writes the manifest, and each
stage enters itself last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from graphbuild.datasets.base import OpenSource
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import EncoderSpec, missing_on_this_machine
from graphbuild.embed.shard import embed_missing, embed_own, embed_shard, first_texts, shard_keys
from graphbuild.embed.text.append import ALL_SOURCES, Addition, Segment, plan_addition, segments_of
from graphbuild.embed.text.stage import TextOutcome, TextWork, check_source, write_texts
from graphbuild.embed.text.table import Prompts, TextPolicy
from graphbuild.embed.workers import choose_workers
from graphbuild.errors import redact
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, copy_files, damage, require_intact
from graphbuild.store.manifest import Manifest, Stage, up_to_date
from graphbuild.store.parts import Part
from graphbuild.store.stage import Made, enter_stage, require_writable, run_stage
from graphbuild.system.cluster import Workers
from graphbuild.system.progress import progress


class EmbedRun:
    """One call of `build_embeddings`: its stages of texts and of vectors."""

    def __init__(
        self,
        graph_dir: Path,
        config: EmbedConfig,
        manifest: Manifest,
        source: OpenSource,
        policy: TextPolicy,
        prompts: Prompts,
        precision: tuple[EncoderSpec, float | None],
    ) -> None:
        self._graph_dir, self._config, self._manifest = graph_dir, config, manifest
        self._source, self._policy, self._prompts = source, policy, prompts
        self._spec, self._cosine = precision

    def text(self) -> bool:
        """Write texts, counts and samples; returns whether anything was missing."""
        config, inputs = self._text_config(), self._source.digests
        if self._config.append:
            return self._append_text(config)
        segments = segments_of(self._manifest.stages.get("text"), config, inputs)
        if self._only_tokenizer_is_damaged(config, inputs):
            return self._mend_tokenizer()

        def work(_key: str) -> Made:
            outcome = self._write_texts(segments)
            self._manifest.dataset = self._describe_dataset()
            self._manifest.shard_size = self._config.shard_size
            return Made(outcome.receipts.values(), outcome.facts)

        overwrite, remedy = self._config.overwrite, "--append to add new files to it, "
        return run_stage(
            self._graph_dir, self._manifest, "text", config, inputs, work, overwrite=overwrite, remedy=remedy, check=self._check
        )

    def _check(self) -> None:
        """Before a text stage is replaced: see that the encoder loads and the source can be read to its end.

        Raises:
            UserError: As the work would, which then costs nothing that was there.
        """
        if "text" in self._manifest.stages:
            load_encoder(self._spec)
            repeated = self._config.multi_caption or self._source.repeated_ids
            check_source(self._source, self._policy, self._prompts, repeated=repeated)

    def _only_tokenizer_is_damaged(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        done = self._manifest.stages.get("text")
        if done is None or done.config != json.loads(json.dumps(config)) or done.inputs != inputs:
            return False
        damaged = [receipt for receipt in done.files.values() if damage(self._graph_dir, receipt)]
        return bool(damaged) and all(receipt in done.in_folder(schemas.TOKENIZER) for receipt in damaged)

    def _mend_tokenizer(self) -> bool:
        """Write the encoder's tokenizer again, which takes no look at the captions."""
        require_writable(self._graph_dir, "text")
        done, tokenizer = self._manifest.stages["text"], self._write_tokenizer()
        files = {name: receipt for name, receipt in done.files.items() if receipt not in done.in_folder(schemas.TOKENIZER)}
        enter_stage(self._graph_dir, self._manifest, "text", replace(done, files=dict(sorted((files | tokenizer).items()))))
        return True

    def _write_tokenizer(self) -> dict[str, Receipt]:
        with TemporaryDirectory() as folder:
            load_encoder(self._spec).save_tokenizer(Path(folder))
            return {receipt.path: receipt for receipt in copy_files(self._graph_dir, schemas.TOKENIZER, Path(folder))}

    def _write_texts(self, segments: tuple[Segment, ...], addition: Addition | None = None) -> TextOutcome:
        encoder = load_encoder(self._spec)
        work = TextWork(
            policy=self._policy,
            prompts=self._prompts,
            multi_caption=self._config.multi_caption or self._source.repeated_ids,
            shard_size=self._config.shard_size,
            segments=segments,
            held=addition.held if addition else None,
            known=addition.known if addition else frozenset(),
        )
        with progress("reading captions", None, unit="samples") as meter:
            outcome = write_texts(self._graph_dir, self._source, encoder, work, meter.advance)
        tokenizer = self._write_tokenizer()
        self._manifest.encoder = self._describe_encoder()
        self._manifest.counts = outcome.counts
        return replace(outcome, receipts={**outcome.receipts, **tokenizer})

    def _append_text(self, config: Mapping[str, Any]) -> bool:
        """Texts, counts and samples of new files; nothing of what is there is touched before the new shards are finished."""
        addition = plan_addition(self._graph_dir, self._manifest, self._source, config, self._spec)
        if not addition.files:
            require_intact(self._graph_dir, addition.held.stage.files, remedy=ALL_SOURCES)
            click.echo(f"{self._graph_dir}: holds these sources already", err=True)
            return False
        started = time.monotonic()
        outcome = self._write_texts(addition.segments, addition)
        before, described = self._manifest.dataset, self._describe_dataset()
        new = {file.name for file in addition.files}
        self._manifest.dataset = {
            **before,
            "sources": list(dict.fromkeys([*before["sources"], *described["sources"]])),
            "files": [*before["files"], *(file for file in described["files"] if file["name"] in new)],
            # A manifest names one place of pictures; `train run --data` names several.
            "images": None,
        }
        superseded = {name: self._manifest.stages[name] for name in ("knn",) if name in self._manifest.stages}
        stage = Stage(
            config=dict(config),
            inputs=addition.inputs,
            seconds=round(time.monotonic() - started, 3),
            files=outcome.receipts,
            facts=outcome.facts,
        )
        enter_stage(self._graph_dir, self._manifest, "text", stage, superseded=superseded or dict(self._manifest.superseded))
        return True

    def _text_config(self) -> dict[str, Any]:
        return {
            "dataset": self._config.dataset,
            **self._reading(),
            "encoder": self._spec.name,
            "tokenizer": self._spec.files_digest,
            "shard_size": self._config.shard_size,
            **({"prompt": self._spec.prompt} if self._spec.prompt is not None else {}),
            **({"definitions": self._source.definitions.digest} if self._source.definitions else {}),
            **self._rule(),
        }

    def _describe_dataset(self) -> dict[str, Any]:
        return {
            "name": self._config.dataset,
            "sources": [redact(source) for source in self._config.sources],
            "files": [asdict(file) for file in self._source.files],
            **self._reading(),
            "images": self._source.images.record() if self._source.images else None,
            **({"definitions": asdict(self._source.definitions)} if self._source.definitions else {}),
            **self._rule(),
            **({"skip_broken": True} if self._config.skip_broken else {}),
        }

    def _reading(self) -> dict[str, Any]:
        """Return how captions are read, as both the stage and the data set record it."""
        return {
            **self._source.columns(),
            "templates": list(self._prompts.templates),
            "replacements": [list(pair) for pair in self._policy.replacements],
            "multi_caption": self._config.multi_caption,
        }

    def _rule(self) -> dict[str, Any]:
        return {"on_duplicate": self._config.on_duplicate} if self._config.on_duplicate else {}

    def _describe_encoder(self) -> dict[str, Any]:
        encoder = load_encoder(self._spec)
        return {
            "name": self._spec.name,
            "revision": self._spec.revision,
            "sha256": self._spec.sha256,
            "dim": encoder.dim,
            "max_tokens": encoder.max_tokens,
            "precision": self._spec.precision,
            "cosine_to_float32": self._cosine,
            **self._spec.deviations(),
        }

    def has_text(self) -> bool:
        """Return whether the texts are there, made with these options from these files."""
        inputs = self._source.digests
        return up_to_date(self._manifest, self._graph_dir, "text", self._text_config(), inputs, overwrite=False)

    def embed_part(self, part: Part) -> tuple[int, int]:
        """Write the shards of a part; returns how many were written, and how many of all are still missing."""
        keys = shard_keys(self._manifest, *self._embed_options())
        return embed_own(self._graph_dir, keys, embed_shard, self._arguments, part=part, unit="texts")

    def _arguments(self, index: int, key: str) -> tuple[Any, ...]:
        """What `embed_shard` is given for a shard."""
        return str(self._graph_dir.absolute()), index, self._spec, self._prompts, key

    def _embed_options(self) -> tuple[dict[str, Any], dict[str, str]]:
        config = {**self._spec.identity(), "templates": list(self._prompts.templates), "shard_size": self._config.shard_size}
        return config, self._manifest.text_digests()

    def embed(self) -> bool:
        """Write one vector per text; returns whether anything was missing."""
        config, inputs = self._embed_options()

        def work(_key: str) -> Made:
            made = self._embed_shards(config, inputs)
            self._manifest.encoder = self._describe_encoder()
            return made

        return run_stage(self._graph_dir, self._manifest, "embed", config, inputs, work, overwrite=self._config.overwrite)

    def _embed_shards(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> Made:
        return embed_missing(
            self._graph_dir,
            shard_keys(self._manifest, config, inputs),
            embed_shard,
            self._arguments,
            workers=self._workers,
            check=partial(missing_on_this_machine, self._spec),
            count=self._manifest.counts["texts"],
            unit="texts",
        )

    def _workers(self, shards: list[int], left: int) -> Workers:
        """Where shards of texts are embedded: as asked, else as a calibration finds fastest."""
        if self._config.workers is not None or self._config.scheduler is not None or len(shards) < 2:
            return Workers(count=self._config.workers or 0, scheduler=self._config.scheduler)
        first = self._graph_dir / schemas.part_name(schemas.TEXTS, shards[0])
        choice = choose_workers(self._spec, first_texts(first), left=left, tasks=len(shards))
        if choice.rates:
            click.echo(choice.summary(), err=True)
        return Workers(count=choice.count, gpus=choice.gpus)
