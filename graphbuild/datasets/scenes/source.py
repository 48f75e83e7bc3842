"""`scenes`: drawn pictures with captions from a grammar; synthetic, made on the spot, without download or file.

The pictures are written to GRAPH_DIR/images/, train and val; the captions of the train split become the graph. Picture i
of a split depends on the seed, the split and i alone, so that more pictures begin with the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from graphbuild.datasets.base import (
    BATCH_ROWS,
    CaptionBatch,
    OpenSource,
    SourceInfo,
    SourceOptions,
    nothing_kept,
    refuse_headerless,
    require_columns,
)
from graphbuild.datasets.formats.files import describe_files, local_file
from graphbuild.datasets.scenes.draw import encode_png, render
from graphbuild.datasets.scenes.words import describe, draw_scene
from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.digests import digest_json
from graphbuild.store.files import ShardRange, finished, remove_strays, shard_ranges, write_parquet
from graphbuild.store.images import Images
from graphbuild.store.tables import open_parquet
from graphbuild.system.progress import Meter, progress

SPLITS = ("train", "val")
LABELS = ("object", "attribute", "background")
"""Columns of the labels that evaluations ask for; size and place are stored too."""
SYNTHETIC = "synthetic: drawn by this program, captions from a grammar"

_VERSION = 1
"""Raised when the drawing or the grammar changes, so that old pictures are not taken for new ones."""
_FILE_PICTURES = 16_384
_SCHEMA = pa.schema(
    [
        pa.field(schemas.SAMPLE_ID, pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in (*LABELS, "size", "place")),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesConfig:
    """How many pictures are drawn, and by which seed."""

    train: int = 6_000
    """Pictures of the train split; their captions become the graph."""
    val: int = 1_500
    """Pictures held out for evaluation."""
    side: int = 32
    """Width and height, in pixels."""
    seed: int = 0
    """Another seed, other pictures."""


_ALLOWED = {"train": (1, 10_000_000), "val": (1, 10_000_000), "side": (16, 256), "seed": (0, 2**31 - 1)}


def parse_config(sources: tuple[str, ...]) -> ScenesConfig:
    """Read `--source train=6000,val=1500,side=32,seed=0`, each entry optional.

    Raises:
        OptionError: Naming the entry that is unknown or out of range, and what is allowed.
    """
    values: dict[str, int] = {}
    for entry in (entry for source in sources for entry in source.split(",") if entry):
        name, _, number = entry.partition("=")
        if name not in _ALLOWED:
            raise OptionError(
                f"--dataset scenes draws its own pictures: --source {entry!r} means nothing to it. "
                "Leave it out, or give some of train=6000,val=1500,side=32,seed=0."
            )
        low, high = _ALLOWED[name]
        if not number.isdecimal() or not low <= int(number) <= high:
            raise OptionError(f"--dataset scenes: --source {entry!r} is not allowed: {name} is a number from {low:,} to {high:,}.")
        values[name] = int(number)
    return ScenesConfig(**values)


def draw_pictures(graph_dir: Path, config: ScenesConfig) -> None:
    """Draw both splits into GRAPH_DIR/images/; files that are there and intact stay."""
    tasks = [(split, part) for split in SPLITS for part in shard_ranges(getattr(config, split), _FILE_PICTURES)]
    expected = {_file_name(split, part.index) for split, part in tasks}
    with progress("drawing scenes", config.train + config.val, unit="pictures") as meter:
        for split, part in tasks:
            name = _file_name(split, part.index)
            key = digest_json({"version": _VERSION, "split": split, "stop": part.stop, "side": config.side, "seed": config.seed})
            if finished(graph_dir, name, key=key):
                meter.advance(len(part))
            else:
                write_parquet(graph_dir, name, _draw_part(config, split, part, meter), key=key)
    # Left from a larger set: readers take what the pattern matches.
    remove_strays(graph_dir, schemas.IMAGES, expected)


def _file_name(split: str, index: int) -> str:
    return f"{schemas.IMAGES}/{split}-{index:05d}.parquet"


def _draw_part(config: ScenesConfig, split: str, part: ShardRange, meter: Meter) -> pa.Table:
    columns: dict[str, list[object]] = {name: [] for name in _SCHEMA.names}
    for index in range(part.start, part.stop):
        rng = np.random.default_rng((config.seed, SPLITS.index(split), index))
        scene = draw_scene(rng)
        row = asdict(scene) | {
            schemas.SAMPLE_ID: f"{split}-{index:07d}",
            "caption": describe(scene, rng),
            "image": encode_png(render(scene, config.side, rng)),
            "place": f"{('top', 'middle', 'bottom')[scene.place[0]]} {('left', 'centre', 'right')[scene.place[1]]}",
        }
        for name, value in row.items():
            columns[name].append(value)
        meter.advance()
    return pa.table(columns, schema=_SCHEMA)


class ScenesSource:
    """The built-in data set of the demo."""

    info = SourceInfo(
        name="scenes",
        what="Drawn pictures of 16 things in 10 colours on 10 backgrounds, with captions from a grammar. Synthetic: it shows that "
        "the path works, and says nothing about photographs.",
        size="6,000 train + 1,500 val pictures of 32 px by default; --source train=N,val=N,side=PX,seed=N changes that",
        licence="made by this program, no restrictions",
        origin="drawn on the spot: no download, no file",
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Draw the pictures that are not there yet; those of other options are replaced."""
        draw_pictures(graph_dir, parse_config(options.sources))

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Point at the drawn train split.

        Raises:
            OptionError: If an entry of --source is unknown, or a column is chosen: they are fixed.
            SourceError: If a column to keep does not exist.
        """
        parse_config(options.sources)
        refuse_headerless(options, "scenes")
        for option, given, only in (
            ("--caption-column", options.caption_column, "caption"),
            ("--id-column", options.id_column, schemas.SAMPLE_ID),
        ):
            if given not in (None, only):
                raise OptionError(f"--dataset scenes has one column for that, {only!r}: leave out {option} {given}.")
        require_columns("--dataset scenes", [name for name in _SCHEMA.names if name != "image"], options.keep_columns)
        paths = sorted((graph_dir / schemas.IMAGES).glob("train-*.parquet"))
        return OpenSource(
            files=describe_files([local_file(path) for path in paths]),
            read=lambda: _read(paths, options.keep_columns),
            caption_column="caption",
            id_column=schemas.SAMPLE_ID,
            keep_schema=pa.schema([_SCHEMA.field(name) for name in options.keep_columns]),
            images=Images(
                kind="parquet",
                path=f"{schemas.IMAGES}/train-*.parquet",
                val=f"{schemas.IMAGES}/val-*.parquet",
                image_column="image",
                id_column=schemas.SAMPLE_ID,
                label_column="object",
                note=SYNTHETIC,
            ),
        )


def _read(paths: list[Path], keep: tuple[str, ...]) -> Iterator[CaptionBatch]:
    for path in paths:
        first_row = 0
        wanted = list(dict.fromkeys([schemas.SAMPLE_ID, "caption", *keep]))
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                table = pa.Table.from_batches([batch])
                yield CaptionBatch(
                    file=path.name,
                    first_row=first_row,
                    sample_ids=table[schemas.SAMPLE_ID].to_pylist(),
                    captions=[[caption] for caption in table["caption"].to_pylist()],
                    kept=table.select(list(keep)) if keep else nothing_kept(table.num_rows),
                )
                first_row += table.num_rows


SOURCE = ScenesSource()
