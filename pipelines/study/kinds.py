"""`python -m pipelines.study.kinds --data FOLDER --tiny-run RUN --flickr-run RUN`: X-CLR on each kind of graph, beside its twin.

The study's data, net and a quarter of its budget, as in `pipelines.study.objectives`, and the same softness for all: tau_s is
solved so that the own view has as much of the target as it has with class prompts at 0.1. A twin has the same similarities between
other samples, or classes. The runs are those of `train run --objective simclr` on the pictures of either; without them, arms of
pictures are left out. Killed and started again, the same command goes on. An example, not a claim: one seed.

A graph is named as in `pipelines.study.graphs`; beside those, `prompts+wordnet` (mean of the prompts' similarities and WordNet's
path similarities), `pictures`, `pictures-prompts`, `flickr+first` (the first caption of each picture), `flickr+pictures` and
`flickr+both`. Shape letters: C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import polars as pl

from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import OptionError
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.arrays import Float64
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.frames import Frames
from graphbuild.system.options import FOLDER, HELP
from graphbuild.system.process import run_cli
from pipelines.study.data import StudyData, prepare_data, write_frame
from pipelines.study.execute import Study
from pipelines.study.graphs import build_graph, class_distances, class_similarities, import_similarities, make_graph, shuffle
from pipelines.study.objectives import RecordedConfig, Trial, budget_option, make_recorded, records_option, table, table_option
from pipelines.study.plan import CAPTIONS, CONTROL, PROMPTS, Arm, Planned

_SOFTNESS = {"tau_s": "auto", "target_mass": 0.24}
_BOTH = f"{PROMPTS}+wordnet"
_PICTURES, _FUSED = "pictures", "pictures-prompts"
_FIRST, _SEEN, _ALL = (f"{CAPTIONS}+{name}" for name in ("first", "pictures", "both"))
_SEED = 0


def _trials() -> list[Trial]:
    found = []
    for name, graph, twin, group in (
        ("prompts", PROMPTS, PROMPTS + CONTROL, "kinds"),
        ("prompts-wordnet", _BOTH, f"{_BOTH}-shuffled", "kinds"),
        ("pictures", _PICTURES, f"{_PICTURES}-shuffled", "kinds"),
        ("pictures-prompts", _FUSED, f"{_FUSED}-shuffled", "kinds"),
        ("flickr-captions", _FIRST, f"{_FIRST}-shuffled", CAPTIONS),
        ("flickr-pictures", _SEEN, f"{_SEEN}-shuffled", CAPTIONS),
        ("flickr-both", _ALL, f"{_ALL}-shuffled", CAPTIONS),
    ):
        found.append(Trial(Arm(name=name, group=group, objective="xclr", graph=graph, options=_SOFTNESS), f"{name}-shuffled"))
        found.append(Trial(Arm(name=f"{name}-shuffled", group=group, objective="xclr", graph=twin, options=_SOFTNESS)))
    return found


TRIALS: Mapping[str, Trial] = {trial.arm.name: trial for trial in _trials()}


@dataclass(frozen=True, kw_only=True, slots=True)
class KindsConfig(RecordedConfig):
    """From what the graphs are made; `source` holds flickr8k/, too."""

    tiny_run: Path | None = None
    """SimCLR on Tiny-ImageNet's pictures; without it, arms of them are left out."""
    flickr_run: Path | None = None
    """SimCLR on Flickr8k's pictures."""
    names: tuple[str, ...] = tuple(TRIALS)

    def can(self, graph: str) -> bool:
        """Return whether all that a graph is made of is there."""
        true = graph.removesuffix("-shuffled")
        return not ((true in (_PICTURES, _FUSED) and self.tiny_run is None) or (true in (_SEEN, _ALL) and self.flickr_run is None))


def execute(config: KindsConfig) -> None:
    """Make and record every run that has no record; the graph of each before it.

    Raises:
        ArtifactMismatch: If a record is of a run that was made otherwise.
        UserError: If a graph or a run cannot be made; those before it stand.
    """
    data = prepare_data(config.source, config.out)
    study, graphs = Study(config.studied(), data), Kinds(config, data)
    for name in config.names:
        arm = TRIALS[name].arm
        if config.can(arm.graph):
            graphs.build(arm.graph)
            make_recorded(study, [Planned(arm, _SEED)], config.records, TRIALS)


class Kinds:
    """The graphs, each built where it is missing."""

    def __init__(self, config: KindsConfig, data: StudyData) -> None:
        self._config, self._data, self._folder = config, data, config.out / "graphs"
        self._makers: Mapping[str, Callable[[Path], object]] = {
            _BOTH: lambda path: import_similarities(path, self._with_wordnet(), data),
            _PICTURES: lambda path: self._pictures(path, data.seen, config.tiny_run),
            _FUSED: lambda path: self._fuse(path, PROMPTS, _PICTURES),
            _FIRST: self._first_captions,
            _SEEN: lambda path: self._pictures(path, data.flickr, config.flickr_run),
            _ALL: lambda path: self._fuse(path, _FIRST, _SEEN),
            f"{_BOTH}-shuffled": lambda path: import_similarities(path, shuffle(self._with_wordnet()), data),
        }

    def build(self, name: str) -> Path:
        """Build a graph, and those that it is made from, as far as they are missing; returns its directory."""
        path = self._folder / name
        if name in self._makers:
            self._makers[name](path)
        elif name.endswith("-shuffled"):
            self._shuffle(path, self.build(name.removesuffix("-shuffled")))
        else:
            build_graph(name, self._data, self._folder, self._config.encoder)
        return path

    def _with_wordnet(self) -> Float64:
        """Mean of the prompts' similarities and WordNet's path similarities of the seen classes; (C, C)."""
        prompts_CC = class_similarities(PROMPTS, self._data, self._folder, self._config.encoder)
        return (prompts_CC + 1 / (1 + class_distances(self._data))) / 2

    def _pictures(self, path: Path, source: Path, run: Path | None) -> None:
        config = EmbedConfig(
            dataset="parquet", sources=(str(source),), id_column="file", embedded="images", encoder=str(run), workers=0
        )
        make_graph(path, config)

    def _first_captions(self, path: Path) -> None:
        source = self._data.folder / "flickr-first.parquet"
        first = pl.read_parquet(self._data.flickr, columns=["file", "captions"])
        write_frame(first.with_columns(caption=pl.col("captions").list.first()).drop("captions"), source)
        config = EmbedConfig(
            dataset="parquet",
            sources=(str(source),),
            caption_column="caption",
            id_column="file",
            encoder=self._config.encoder,
            workers=0,
        )
        make_graph(path, config)

    def _fuse(self, path: Path, *names: str) -> None:
        fuse_graphs([self.build(name) for name in names], path, FuseConfig())
        build_knn(path, KnnConfig())

    def _shuffle(self, path: Path, true: Path) -> None:
        """The same vectors of other samples."""
        samples = Frames(true).samples.select("sample_id", "text_id").collect()
        moved = samples["sample_id"].gather(np.random.default_rng(_SEED).permutation(len(samples)))
        vectors = load_embeddings(true)[samples["text_id"].to_numpy()].astype(np.float32)
        source = self._data.folder / f"{path.name}.parquet"
        write_frame(pl.DataFrame({"file": moved, "vector": vectors}), source)
        make_graph(path, EmbedConfig(dataset="vectors", sources=(str(source),), id_column="file", workers=0))


@click.command(context_settings=HELP)
@click.option("--data", "source", type=FOLDER, help="Folder of tiny_imagenet/, classes/ and flickr8k/.")
@click.option("--tiny-run", type=FOLDER, default=None, help="SimCLR, Tiny-ImageNet.")
@click.option("--flickr-run", type=FOLDER, default=None, help="Of Flickr8k.")
@click.option("--out", type=FOLDER, default=Path("runs/kinds"), show_default=True)
@records_option
@click.option("--only", multiple=True, type=click.Choice(tuple(TRIALS)), help="Arms to run; repeatable (default: all).")
@budget_option
@table_option
def kinds(
    source: Path | None,
    tiny_run: Path | None,
    flickr_run: Path | None,
    out: Path,
    records: Path | None,
    only: tuple[str, ...],
    budget: int,
    as_table: bool,
) -> None:
    """Train on each kind of graph and on its twin, and evaluate; runs that have a record are not made again."""
    file = records or out / "records.jsonl"
    if not as_table:
        if source is None:
            raise OptionError("--data names the folder of tiny_imagenet/, classes/ and flickr8k/: give it, or --table.")
        names = only or tuple(TRIALS)
        execute(
            KindsConfig(source=source, out=out, records=file, tiny_run=tiny_run, flickr_run=flickr_run, names=names, budget=budget)
        )
    click.echo(table(file, TRIALS))


if __name__ == "__main__":
    run_cli(kinds, debug_variable="TRAIN_DEBUG")
