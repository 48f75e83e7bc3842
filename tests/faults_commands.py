"""What the fault tests strike: every command that changes files, on small inputs that one folder holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from helpers_embed import embed, numbered_captions, save_cross_encoder, write_captions
from helpers_train import CLASSES, draw, encode, tiny_config
from safetensors.torch import save_file

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.images import IMAGES
from graphbuild.embed.part import build_embeddings_part
from graphbuild.embed.rescore import RescoreConfig, rescore
from graphbuild.exchange.export import export_edges
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.exchange.imported import ImportConfig, import_graph
from graphbuild.exchange.publish import Measured, PublishConfig, publish_graph
from graphbuild.exchange.relate.config import RelateConfig
from graphbuild.exchange.relate.stage import relate_columns, relate_part
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.part import build_knn_part
from graphbuild.knn.stage import build_knn
from graphbuild.quality.curate.dedup import find_duplicates
from graphbuild.quality.curate.outliers import find_outliers
from graphbuild.quality.curate.sample import choose_sample
from graphbuild.quality.explore.layout import lay_out
from graphbuild.quality.explore.write import ExploreConfig, write_map
from graphbuild.quality.report.write import write_report
from graphbuild.store.parts import Part
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition
from train.cli import cli as train_cli
from train.data.reshard import reshard
from train.evaluate.options import EvalOptions
from train.evaluate.run import evaluate_run
from train.results.export import export_run
from train.results.report.write import write_report as write_run_report
from train.run.loop import train

CAPTIONS, SHARD = 36, 9
SOURCES = ("captions.parquet", "more.parquet")
APPENDED = 12
NET = "test_vit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One command, what it begins with, and what else it reads."""

    do: Callable[[Path], object]
    """The work, on the folder that it changes; what it reads lies beside that."""
    begins: str = "nothing"
    """The command whose outcome it finds in that folder."""
    reads: tuple[str, ...] = ()
    """Commands whose outcomes lie beside it as `whole-NAME`."""
    loads: tuple[str, ...] = ()
    """Modules that it imports only when it runs: loaded once, for all forks."""
    warm: Callable[[], object] | None = None
    """What compiles its kernels, where every fork would compile them anew."""
    network: Callable[[Path], object] | None = None
    """What writes the network that it reads into the folder of inputs."""


def write_inputs(folder: Path) -> None:
    """Write what commands read: captions, vectors, nodes and edges, pictures, and lists of ids."""
    texts = numbered_captions(CAPTIONS + APPENDED)
    for name, some in zip(SOURCES, (texts[:CAPTIONS], texts[CAPTIONS:]), strict=True):
        write_captions(folder / name, {"caption": some, "number": list(range(len(some)))})
    write_captions(folder / "vectors.parquet", {"vector": torch.randn(CAPTIONS, 8, generator=torch.manual_seed(0)).tolist()})
    (folder / "nodes.csv").write_text("id,text\n" + "".join(f"n{i},node {i}\n" for i in range(7)))
    for name, step in (("edges.csv", 1), ("other.csv", 2)):
        rows = [f"n{i},n{(i + j * step) % 7},{0.9 - 0.1 * j:.1f}\n" for i in range(7) for j in (1, 2)]
        (folder / name).write_text("src,dst,similarity\n" + "".join(rows))
    (folder / "keep.txt").write_text("".join(f"{SOURCES[0]}:{row}\n" for row in range(0, CAPTIONS, 2)))
    (folder / "pictures").mkdir()
    pictures = {
        "pictures/" + SOURCES[0]: range(CAPTIONS),
        "held-out.parquet": range(CAPTIONS, 2 * CAPTIONS),
        "few.parquet": range(6),
    }
    for name, numbers in pictures.items():
        columns = {"image": [encode(draw(number)) for number in numbers], "label": [number % CLASSES for number in numbers]}
        write_captions(folder / name, columns)


def _import(graph_dir: Path, edges: str, *, overwrite: bool) -> None:
    folder = graph_dir.parent
    config = ImportConfig(texts=folder / "nodes.csv", edges=folder / edges, shard_size=3, overwrite=overwrite)
    import_graph(graph_dir, config)


def _append(graph_dir: Path) -> None:
    embed(graph_dir, None, sources=tuple(str(graph_dir.parent / name) for name in SOURCES), shard_size=SHARD, append=True)


def mend(graph_dir: Path) -> None:
    """Build from all sources: what is lost of a graph that was appended to."""
    embed(graph_dir, None, sources=tuple(str(graph_dir.parent / name) for name in SOURCES), shard_size=SHARD)


def _parts(graph_dir: Path, config: EmbedConfig) -> None:
    """A part, and the call that ends the stage: it removes what killed parts left, which other parts may be at."""
    build_embeddings_part(graph_dir, config, Part(1, 2))
    build_embeddings(graph_dir, config)


def _captions(graph_dir: Path) -> EmbedConfig:
    captions = (str(graph_dir.parent / SOURCES[0]),)
    return EmbedConfig(dataset="parquet", encoder="hashing:16", workers=0, sources=captions, shard_size=SHARD)


def _knn_parts(graph_dir: Path) -> None:
    config = KnnConfig(k=10, device="cpu")
    build_knn_part(graph_dir, config, Part(1, 2))
    build_knn(graph_dir, config)


def _relate_parts(graph_dir: Path) -> None:
    relate_part(graph_dir, _relation(graph_dir), Part(1, 2))
    relate_columns(graph_dir, _relation(graph_dir))


def _vectors(graph_dir: Path) -> EmbedConfig:
    vectors = (str(graph_dir.parent / "vectors.parquet"),)
    return EmbedConfig(dataset="vectors", sources=vectors, vector_column="vector", shard_size=SHARD)


def _write_net(folder: Path) -> None:
    import timm

    torch.manual_seed(0)
    save_file(timm.create_model(NET, num_classes=0).state_dict(), folder / "net.safetensors")


def _pictures(graph_dir: Path) -> EmbedConfig:
    folder = graph_dir.parent
    encoder, pictures = f"timm:{NET}:{folder / 'net.safetensors'}", (str(folder / "few.parquet"),)
    return EmbedConfig(dataset="parquet", sources=pictures, encoder=encoder, embedded=IMAGES, workers=0, shard_size=3)


def _relation(graph_dir: Path) -> RelateConfig:
    return RelateConfig(sources=(str(graph_dir.parent / SOURCES[0]),), kernels=("number=number:6",), k=5, shard_size=SHARD)


def _subset(graph_dir: Path) -> None:
    subset_graph(graph_dir.parent / "whole-embed", graph_dir, SubsetConfig(keep=graph_dir.parent / "keep.txt"))


def _fuse(graph_dir: Path, first: str, second: str, config: FuseConfig) -> None:
    fuse_graphs([graph_dir.parent / first, graph_dir.parent / second], graph_dir, config)


def _lay_out() -> None:
    """Compile UMAP, whose threads of this kind alone outlive a fork."""
    numba.config.THREADING_LAYER = "workqueue"
    near = np.stack([np.roll(np.arange(CAPTIONS, dtype=np.int32), -1 - i) for i in range(10)], axis=1)
    places = np.random.default_rng(0).normal(size=(CAPTIONS, 2)).astype(np.float32)
    lay_out(near, np.full(near.shape, 0.5, np.float32), places, seed=0)


def _publish(out: Path) -> None:
    measured = Measured(recall=None, recall_rows=None, health=())
    publish_graph(out.parent / "whole-knn", out, PublishConfig(license="cc-by-4.0"), measured)


def _train(run_dir: Path, *, overwrite: bool = False, **options: object) -> None:
    """Train for a few steps on pictures that have the ids of the captions."""
    folder = run_dir.parent
    torch.set_num_threads(1)
    defaults = {"objective": "xclr", "epochs": 1, "steps": 4, "checkpoint_every": 2, "kl_every": 0, "workers": 1, "id_column": None}
    where = {"graph_dir": str(folder / "whole-knn"), "data": str(folder / "pictures" / SOURCES[0])}
    train(tiny_config(**{**defaults, **where, **options}), run_dir, overwrite=overwrite)


def _score(run_dir: Path) -> None:
    torch.set_num_threads(1)
    held_out = str(run_dir.parent / "held-out.parquet")
    evaluate_run(run_dir, EvalOptions(data=held_out, label_columns=("label",), protocols=("knn",), untrained=False, device="cpu"))


def _draw(run_dir: Path) -> None:
    train_cli.main(["compare", str(run_dir), "--matrices", str(run_dir / "matrices.svg")], standalone_mode=False)


def _reshard(out: Path) -> None:
    pictures = str(out.parent / "pictures" / SOURCES[0])
    reshard(tiny_config(graph_dir=str(out.parent / "whole-partition"), data=pictures, id_column=None, chunk=4), out, shard_size=9)


_PICTURES = ("train.data.parquet", "train.data.img2dataset")
_FIGURES = (*_PICTURES, "matplotlib.pyplot", "matplotlib.backends.backend_svg")
COMMANDS = {
    "embed": Command(do=lambda at: embed(at, at.parent / SOURCES[0], shard_size=SHARD)),
    "knn": Command(begins="embed", do=lambda at: build_knn(at, KnnConfig(k=10, device="cpu"))),
    "append": Command(begins="knn", do=_append),
    "extend": Command(begins="append", do=lambda at: build_knn(at, KnnConfig(k=10, device="cpu"))),
    "partition": Command(
        loads=("graphbuild.targets.growth",), begins="knn", do=lambda at: build_partition(at, PartitionConfig(chunk=4))
    ),
    "replace": Command(begins="knn", do=lambda at: embed(at, at.parent / SOURCES[0], shard_size=2 * SHARD, overwrite=True)),
    "renew": Command(begins="knn", do=lambda at: build_knn(at, KnnConfig(k=6, device="cpu", overwrite=True))),
    "scenes": Command(loads=("graphbuild.datasets.scenes.source",), do=lambda at: embed(at, "train=30,val=10,side=16", "scenes")),
    "embed parts": Command(do=lambda at: _parts(at, _captions(at))),
    "knn parts": Command(begins="embed", do=_knn_parts),
    "vectors": Command(do=lambda at: build_embeddings(at, _vectors(at))),
    "vector parts": Command(do=lambda at: _parts(at, _vectors(at))),
    "pictures": Command(do=lambda at: build_embeddings(at, _pictures(at)), loads=("timm",), network=_write_net),
    "picture parts": Command(do=lambda at: _parts(at, _pictures(at)), loads=("timm",), network=_write_net),
    "import": Command(do=lambda at: _import(at, "edges.csv", overwrite=False)),
    "reimport": Command(begins="import", do=lambda at: _import(at, "other.csv", overwrite=True)),
    "relate": Command(do=lambda at: relate_columns(at, _relation(at))),
    "relate parts": Command(do=_relate_parts),
    "subset": Command(reads=("embed",), do=_subset),
    "adopt": Command(begins="knn", do=lambda at: build_knn(at, KnnConfig(k=10, device="cpu"))),
    "fuse": Command(reads=("embed", "knn"), do=lambda at: _fuse(at, "whole-embed", "whole-knn", FuseConfig(weights=(0.5, 0.5)))),
    "blend": Command(reads=("knn", "relate"), do=lambda at: _fuse(at, "whole-knn", "whole-relate", FuseConfig(rule="max"))),
    "rescore": Command(
        loads=("sentence_transformers", "transformers.models.bert.modeling_bert"),
        network=lambda folder: save_cross_encoder(folder / "cross-encoder"),
        begins="knn",
        do=lambda at: rescore(at, RescoreConfig(cross_encoder=str(at.parent / "cross-encoder"), top=3)),
    ),
    "report": Command(
        loads=("graphbuild.targets.growth", "jinja2", "scipy.stats"),
        begins="knn",
        do=lambda at: write_report(at, chart=False, batch_size=16),
    ),
    "explore": Command(
        begins="knn",
        do=lambda at: write_map(at, ExploreConfig()),
        loads=("umap", "scipy.spatial", "sklearn.cluster", "sklearn.manifold"),
        warm=_lay_out,
    ),
    "dedup": Command(begins="knn", do=lambda at: find_duplicates(at, at / "export/dedup.parquet")),
    "sample": Command(begins="knn", do=lambda at: choose_sample(at, at / "export/sample.parquet", count=9)),
    "outliers": Command(begins="knn", do=lambda at: find_outliers(at, at / "export/outliers.parquet")),
    "export": Command(begins="knn", do=lambda at: export_edges(at, at / "export/edges.parquet")),
    "publish": Command(reads=("knn",), do=_publish),
    "train": Command(loads=_PICTURES, reads=("knn",), do=_train),
    "retrain": Command(loads=_PICTURES, begins="train", reads=("knn",), do=lambda at: _train(at, seed=1, overwrite=True)),
    "finetune": Command(
        loads=_PICTURES, reads=("train",), do=lambda at: _train(at, init=f"run:{at.parent / 'whole-train/model.safetensors'}")
    ),
    "score": Command(loads=_PICTURES, begins="train", do=_score),
    "page": Command(loads=(*_FIGURES, "jinja2"), begins="score", do=lambda at: write_run_report([at], at / "report.html")),
    "matrices": Command(
        loads=(*_FIGURES, "train.results.compare.matrices", "train.results.compare.table"), begins="score", do=_draw
    ),
    "card": Command(loads=_PICTURES, begins="train", do=lambda at: export_run(at, at / "export", features=at / "features.parquet")),
    "reshard": Command(loads=_PICTURES, reads=("partition",), do=_reshard),
}
"""What is enumerated. `replace` and `renew` overwrite texts and neighbours by other options, `blend` fuses by rescoring, `adopt`
continues a graph of the old layout, `page` and `matrices` show a run that was evaluated, `card` exports one, and `retrain`
overwrites one."""
TRAINED = ("train", "retrain", "finetune", "score", "page", "matrices", "card", "reshard")
"""Commands of `train`."""


def needed(commands: tuple[str, ...]) -> tuple[str, ...]:
    """Return some commands with all that they begin with and read, in the order in which they are built."""
    found, left = set(), list(commands)
    while left:
        name = left.pop()
        if name not in found and name != "nothing":
            found.add(name)
            left += [COMMANDS[name].begins, *COMMANDS[name].reads]
    return tuple(name for name in COMMANDS if name in found)
