"""Commands that build a graph directory: datasets, embed, knn, rescore, partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphbuild.cli.options import (
    graph_dir_option,
    k_option,
    overwrite_option,
    part_option,
    scheduler_option,
    shard_size_option,
    shard_workers_option,
    sketch_dim_option,
    trust_option,
    workers_option,
)
from graphbuild.store.manifest import find_graph_dir
from graphbuild.store.parts import Part
from graphbuild.store.reading import reading_options
from graphbuild.store.repeats import ON_DUPLICATE
from graphbuild.system.answers import answer
from graphbuild.system.options import DEFAULT_ENCODER, SEED, FiniteRange, json_option


@click.command()
@json_option
def datasets(as_json: bool) -> None:
    """Show what --dataset takes: size, licence note, and where it comes from."""
    from graphbuild.embed.sources import describe_all

    answer(describe_all(), as_json)


@click.command()
@click.option("--dataset", required=True, metavar="NAME", help="What to read; `graphbuild datasets` lists the names.")
@click.option("--source", "sources", multiple=True, metavar="PATH", help="A file, folder, glob or URL; may be repeated.")
@graph_dir_option
@click.option("--caption-column", default=None, help="Column of the captions (default: a usual name, if there is just one).")
@click.option("--id-column", default=None, help="Column of the sample ids (default: <file>:<row>).")
@click.option("--vector-column", default=None, help="Of --dataset vectors: the column of vectors (default: the only one).")
@click.option("--collapse", is_flag=True, help="Of --dataset vectors: samples of equal vectors are one text.")
@click.option("--keep-columns", default=None, metavar="A,B", help="Columns copied into samples, separated by commas.")
@click.option("--columns", default=None, metavar="A,B", help="Names of the columns of csv and tsv files without a header.")
@click.option(
    "--images", default=None, metavar="DIR", help="Folder of the pictures, for train run: sample ids are paths of files in it."
)
@click.option("--skip-broken", is_flag=True, help="Leave out rows that cannot be read; they are counted and listed.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="The captions are class names: put each into this prompt, as in 'a photo of a {}'. Several are averaged; a .json file "
    "holds a list of them, clip80 stands for CLIP's 80.",
)
@click.option(
    "--definitions",
    default=None,
    metavar="PATH",
    help="WordNet 3.0's data.noun, or its folder: imagenet's classes, and imagefolder's wnid folders, become 'NAME: DEFINITION', "
    "without a template unless one is given.",
)
@click.option("--replace", "replacements", multiple=True, metavar="OLD=NEW", help="Replace a string in every caption; recorded.")
@click.option("--multi-caption", is_flag=True, help="Rows that share a sample id are several captions of one sample.")
@click.option(
    "--on-duplicate",
    type=click.Choice(ON_DUPLICATE),
    default=None,
    help="Rows whose sample id came before: an error (the default, unless the data set has several captions a sample), left out "
    "(first), or called ID#2, ID#3 (suffix). They are counted and listed, and train run counts alike.",
)
@click.option(
    "--encoder",
    default=DEFAULT_ENCODER,
    show_default=True,
    help="A Sentence Transformer: a name, or a folder. With --from images: timm:NAME, open_clip:NAME:TAG, a file of weights after "
    "either name, or a run of train.",
)
@click.option(
    "--from",
    "embedded",
    type=click.Choice(["captions", "images"]),
    default="captions",
    show_default=True,
    help="What is embedded; images need an image encoder.",
)
@click.option(
    "--image-column", default=None, help="Of --from images: the Parquet column of pictures (default: the only binary one)."
)
@click.option(
    "--prompt",
    default=None,
    metavar="TEXT",
    help="Put before every text, such as 'query: ', or the name of a prompt in the encoder's configuration (default: its default).",
)
@click.option(
    "--truncate-dim",
    type=click.IntRange(min=1),
    default=None,
    help="Keep the first coordinates only, of encoders made for it (Matryoshka); vectors are normalised after cutting.",
)
@trust_option
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnx", "openvino", "fastest"]),
    default="torch",
    show_default=True,
    help="What computes the encoder: torch, or a file that was exported for ONNX Runtime or OpenVINO; fastest measures all that is "
    "here, and takes what agrees with float32.",
)
@click.option(
    "--backend-file",
    default=None,
    metavar="FILE",
    help="That file in the encoder's folder, such as onnx/model_qint8_avx512_vnni.onnx (default: onnx/model.onnx, "
    "openvino/openvino_model.xml).",
)
@click.option(
    "--attention",
    type=click.Choice(["padded", "flash"]),
    default="padded",
    show_default=True,
    help="flash computes no padding, in half precision on a CUDA GPU, by the package flash_attn, or by a kernel that the package "
    "kernels fetches from the hub.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the encoder; auto takes half precision where the hardware is made for it.",
)
@shard_size_option
@click.option("--append", is_flag=True, help="Add the sources to a graph that is there: only new texts are embedded, ids stay.")
@workers_option
@scheduler_option
@part_option
@overwrite_option
@json_option
def embed(graph_dir: Path | None, part: str | None, as_json: bool, **options: Any) -> None:
    """Embed every caption or class prompt: everything up to index.faiss."""
    from graphbuild.embed.build import build_embeddings, default_graph_dir
    from graphbuild.embed.config import EmbedConfig

    keep, columns = (tuple(value.split(",")) if (value := options.pop(name)) else () for name in ("keep_columns", "columns"))
    config = EmbedConfig(keep_columns=keep, columns=columns, **options)
    directory = graph_dir or default_graph_dir(config)
    if part is not None:
        from graphbuild.embed.part import build_embeddings_part

        answer(build_embeddings_part(directory, config, Part.parse(part)), as_json)
        return
    answer(build_embeddings(directory, config), as_json)


@click.command()
@graph_dir_option
@k_option
@sketch_dim_option
@click.option(
    "--method",
    type=click.Choice(["exact", "ivf"]),
    default="exact",
    show_default=True,
    help="ivf searches through index.faiss: faster for many millions of texts, and misses some neighbours.",
)
@click.option(
    "--recall",
    type=FiniteRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of the neighbours that ivf must find, measured on 2,000 random texts.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the exact search computes; auto takes a GPU where there is one.",
)
@click.option(
    "--memory-limit",
    default=None,
    metavar="SIZE",
    help="Memory for data to stay within, such as 4GB (default: half of what is free); of each worker where there is a scheduler.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Dask worker processes on this machine, a shard each; 0 works in this process, which is faster on one machine.",
)
@scheduler_option
@part_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: time, by a short calibration, memory and disk.")
@overwrite_option
@json_option
def knn(graph_dir: Path | None, part: str | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Find the k nearest texts of every text: exactly, unless told otherwise."""
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn, estimate_knn

    if part is not None:
        from graphbuild.knn.part import build_knn_part

        answer(build_knn_part(find_graph_dir(graph_dir), KnnConfig(**options), Part.parse(part)), as_json)
        return
    answer((estimate_knn if dry_run else build_knn)(find_graph_dir(graph_dir), KnnConfig(**options)), as_json)


@click.command("rescore")
@graph_dir_option
@click.option(
    "--cross-encoder",
    required=True,
    metavar="NAME",
    help="A Sentence Transformers cross-encoder of one output: a name, or a folder.",
)
@click.option("--top", type=click.IntRange(min=1), default=32, show_default=True, help="Nearest neighbours a text to rescore.")
@shard_workers_option
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Only say what it would take: pairs, and time by scoring a few.")
@overwrite_option
@json_option
def rescore_(graph_dir: Path | None, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Score the nearest stored pairs by a cross-encoder, for `train run --similarity rescored`.

    Both similarities are kept: the graph stays as it is, and what was rescored lies beside it.
    """
    from graphbuild.embed.rescore import RescoreConfig, estimate_rescore, rescore

    answer((estimate_rescore if dry_run else rescore)(find_graph_dir(graph_dir), RescoreConfig(**options)), as_json)


@click.command()
@graph_dir_option
@reading_options
@click.option("--chunk", type=click.IntRange(min=1, max=128), default=32, show_default=True, help="Samples a chunk.")
@click.option(
    "--neighbor-ranks",
    default=None,
    metavar="FIRST:LAST",
    help="Grow chunks along the neighbours of these ranks only, such as 1:64 (default: all).",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Orders seeds that are linked alike.")
@click.option("--memory-limit", default=None, metavar="SIZE", help="Memory to stay within (default: half of what is free).")
@json_option
def partition(graph_dir: Path | None, as_json: bool, **options: Any) -> None:
    """Cut the samples into chunks of neighbours, for `train run --batches neighbors`.

    The trainer makes what is missing; partitions of several options lie side by side.
    """
    from graphbuild.targets.chunks import PartitionConfig
    from graphbuild.targets.partition import build_partition

    answer(build_partition(find_graph_dir(graph_dir), PartitionConfig(**options)), as_json)
