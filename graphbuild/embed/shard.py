"""Embedding one shard of texts: what workers run.

Shape letters: n texts of a shard, D vector width.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.embed.text.table import Prompts
from graphbuild.store import schemas
from graphbuild.store.embeddings import embeddings_table
from graphbuild.store.files import Receipt, finished, write_parquet
from graphbuild.store.manifest import Manifest, stage_key
from graphbuild.store.parts import Part
from graphbuild.store.stage import Made
from graphbuild.store.tables import open_parquet, read_parquet
from graphbuild.system.cluster import Report, Task, Workers, run_tasks
from graphbuild.system.progress import progress
from graphbuild.system.worker_checks import Check, versions


def embed_shard(root: str, index: int, spec: EncoderSpec, prompts: Prompts, key: str, *, report: Report) -> Receipt:
    """Embed one shard of texts; the task that workers run.

    Args:
        root: Absolute path of the graph directory.
        index: Number of the shard.
        spec: The encoder, at its precision.
        prompts: Templates of class names, whose vectors are averaged.
        key: Of the receipt.
        report: Told how many texts were finished.

    Returns:
        The receipt of the file that was written; its facts say which process of which host made it, with what.

    Raises:
        ArtifactError: If the shard of texts cannot be read.
    """
    started = time.monotonic()
    graph_dir, name = Path(root), schemas.part_name(schemas.EMBEDDINGS, index)
    # A worker that dies takes along receipts that were not fetched yet; its tasks come again, but not their work.
    if (done := finished(graph_dir, name, key=key)) is not None:
        return done
    texts = read_parquet(graph_dir / schemas.part_name(schemas.TEXTS, index))
    vectors_nD = embed_texts(spec, prompts, texts[schemas.TEXT].to_pylist(), report)
    table = embeddings_table(texts, vectors_nD)
    # The encoder was compared with its digest when this process loaded it.
    found = {"host": platform.node(), "weights": spec.sha256, "versions": versions()}
    facts = {"pid": os.getpid(), "seconds": round(time.monotonic() - started, 3), **found}
    return write_parquet(graph_dir, name, table, key=key, facts=facts)


def embed_missing(
    graph_dir: Path,
    keys: Mapping[str, str],
    task: Task,
    arguments: Callable[[int, str], tuple[Any, ...]],
    *,
    workers: Callable[[list[int], int], Workers],
    check: Check,
    count: int,
    unit: str,
) -> Made:
    """Embed the shards that are not finished, here or on workers, and return the receipts of all, and the processes that made them.

    Args:
        graph_dir: The graph, whose text stage is done.
        keys: Key of each shard of embeddings, in order.
        task: Embeds one shard, and returns its receipt.
        arguments: What the task is given for a shard, by its number and key.
        workers: Where, by the numbers of the missing shards and how many texts they hold.
        check: What a machine lacks for the task.
        count: N of the graph.
        unit: Of the progress.
    """
    done = {name: finished(graph_dir, name, key=key) for name, key in keys.items()}
    receipts = {name: receipt for name, receipt in done.items() if receipt is not None}
    missing = [(index, keys[name]) for index, name in enumerate(keys) if name not in receipts]
    calls = [arguments(index, key) for index, key in missing]
    left = count - sum(receipt.rows for receipt in receipts.values())
    chosen = workers([index for index, _ in missing], left)
    with progress("embedding", left, unit=unit) as meter:
        run = partial(run_tasks, workers=chosen, shared=[graph_dir.absolute()], report=meter.advance, check=check)
        for receipt in run(task, calls) if calls else ():
            receipts[receipt.path] = receipt
    pids = sorted({receipt.facts["pid"] for receipt in receipts.values()})
    return Made([receipts[name] for name in sorted(receipts)], {"pids": pids})


def embed_own(
    graph_dir: Path,
    keys: Mapping[str, str],
    task: Task,
    arguments: Callable[[int, str], tuple[Any, ...]],
    *,
    part: Part,
    unit: str,
) -> tuple[int, int]:
    """Embed the shards of a part that are not finished, in this process; the other arguments are those of `embed_missing`.

    Returns:
        How many were written, and how many of all parts are still missing.
    """
    missing = [(index, name) for index, name in enumerate(keys) if finished(graph_dir, name, key=keys[name]) is None]
    own = [arguments(index, keys[name]) for index, name in missing if part.has(index)]
    with progress("embedding", None, unit=unit) as meter:
        for call in own:
            task(*call, report=meter.advance)
    return len(own), sum(finished(graph_dir, name, key=key) is None for name, key in keys.items())


def shard_keys(manifest: Manifest, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the key of each shard of embeddings, which depends on its own texts alone: later ones change nothing about it.

    Args:
        manifest: Whose text stage is done.
        config: What the vectors depend on.
        inputs: Digests of the columns of the texts.
    """
    names = {
        schemas.part_name(schemas.EMBEDDINGS, shard.index): schemas.part_name(schemas.TEXTS, shard.index)
        for shard in manifest.ranges("text", schemas.TEXTS)
    }
    return {
        name: stage_key(config, {column: digest for column, digest in inputs.items() if column.startswith(f"{texts}:")})
        for name, texts in names.items()
    }


def first_texts(path: Path, count: int = 256) -> list[str]:
    """Return some texts of a shard, to measure on."""
    with open_parquet(path) as file:
        texts: list[str] = next(file.iter_batches(count, columns=[schemas.TEXT]))[schemas.TEXT].to_pylist()
    return texts


def embed_texts(spec: EncoderSpec, prompts: Prompts, texts: list[str], report: Report) -> NDArray[np.float16]:
    """Compute the vectors of texts, normalised and then rounded; float16 of shape (n, D).

    With templates, each text is taken apart into its class name, and the unit vectors of all its prompts are averaged.
    """
    encoder = load_encoder(spec)
    if len(prompts.templates) <= 1:
        tokens, _ = encoder.tokenize(texts)
        rounded: NDArray[np.float16] = encoder.encode(tokens, report).astype(np.float16)
        return rounded
    total_nD = np.zeros((len(texts), encoder.dim), np.float64)
    names = [prompts.name_of(text) for text in texts]
    for number, _ in enumerate(prompts.templates):
        tokens, _ = encoder.tokenize([prompts.all_of(name)[number] for name in names])
        total_nD += encoder.encode(tokens)
    report(len(texts))
    mean: NDArray[np.float16] = (total_nD / np.linalg.norm(total_nD, axis=1, keepdims=True)).astype(np.float16)
    return mean
