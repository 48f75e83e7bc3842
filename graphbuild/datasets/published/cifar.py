"""What CIFAR-10 and CIFAR-100 share. Ids are `train/<index>`, as the trainer has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from graphbuild.datasets.base import BATCH_ROWS, CaptionBatch, OpenSource, SourceInfo, SourceOptions, require_columns
from graphbuild.datasets.formats.files import describe_files, local_file
from graphbuild.datasets.formats.imagefolder import refuse_columns
from graphbuild.errors import OptionError
from graphbuild.store.images import Images, Kind, place_of
from graphbuild.system.cifar import cifar_ids, load_cifar

_DEFAULT_FOLDER = "data"
_SCHEMA = pa.schema([pa.field("label", pa.int32())])


class CifarSource:
    """The train split of CIFAR-10 or CIFAR-100; the test split is for validation."""

    def __init__(self, name: Kind, *, classes: int) -> None:
        self._kind = name
        self.info = SourceInfo(
            name=name,
            what=f"{name.upper().replace('CIFAR', 'CIFAR-')}: {classes} class prompts, 'a photo of a {{}}' by default, for "
            "50,000 train pictures of 32 px; the 10,000 test pictures are for validation.",
            size="170 MB to download",
            licence="none stated by its authors; widely used for research",
            origin=f"downloaded by torchvision into {_DEFAULT_FOLDER}/; --source: a folder that holds it already",
        )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Download the pictures, unless --source names a folder or they are there."""
        if not options.sources:
            load_cifar(self._kind, Path(_DEFAULT_FOLDER), train=True, download=True)

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Read names and labels.

        Raises:
            SourceError: If the pictures are not there, or are damaged.
            OptionError: If there are several sources, or a column is chosen.
        """
        if len(options.sources) > 1:
            raise OptionError(f"--dataset {self.info.name} takes at most one --source; {len(options.sources)} were given.")
        refuse_columns(options, "CIFAR's pictures")
        require_columns(self.info.name, _SCHEMA.names, options.keep_columns)
        root = Path(options.sources[0] if options.sources else _DEFAULT_FOLDER)
        split = load_cifar(self._kind, root, train=True, download=False)
        labels = [int(label) for label in split.targets]
        # Names such as maple_tree are meant to be read.
        names = [str(name).replace("_", " ") for name in split.classes]
        folder = root / split.base_folder
        return OpenSource(
            files=describe_files([local_file(folder / name) for name, _ in [*split.train_list, (split.meta["filename"], None)]]),
            read=lambda: _read(labels, names),
            keep_schema=_SCHEMA,
            class_names=True,
            class_column="label",
            images=Images(
                kind=self._kind,
                path=place_of(root, graph_dir),
                label_column="label",
                val=place_of(root, graph_dir),
            ),
        )


def _read(labels: list[int], names: list[str]) -> Iterator[CaptionBatch]:
    ids = cifar_ids(len(labels), train=True)
    for start in range(0, len(labels), BATCH_ROWS):
        part = labels[start : start + BATCH_ROWS]
        yield CaptionBatch(
            file="train",
            first_row=start,
            sample_ids=ids[start : start + len(part)],
            captions=[[names[label]] for label in part],
            kept=pa.table([part], schema=_SCHEMA),
        )
