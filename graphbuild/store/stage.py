"""What every stage does around its work: hold the graph as its only writer, see whether anything is to do, forget what changes,
do it, and enter it last.

A stage that was killed is not in the manifest, but its finished shards are found by their receipts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.atomic import remove_stale_temporaries
from graphbuild.store.cache import writable
from graphbuild.store.digests import digest_file
from graphbuild.store.files import RECORDS, Receipt, read_receipt, receipt_path, remove_strays, write_receipt
from graphbuild.store.locks import exclusive
from graphbuild.store.manifest import Manifest, Stage, stage_key, up_to_date

_FOLDERS = (
    schemas.TEXTS,
    schemas.COUNTS,
    schemas.SAMPLES,
    schemas.LOOKUP,
    schemas.EMBEDDINGS,
    schemas.KNN,
    schemas.RESCORED,
    schemas.PARTITION,
    schemas.TOKENIZER,
    schemas.IMAGES,
)
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Made:
    """What a stage's work wrote and counted."""

    files: Iterable[Receipt]
    """Receipts of all its files, those that were there before included."""
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def writing(graph_dir: Path, *, wait: bool = False, check: Callable[[], object] | None = None) -> Iterator[Manifest]:
    """Hold a graph directory, as its only writer, until the block ends.

    What killed writers left is removed, and records of the old layout are moved to where they belong now. Nobody writes a graph
    that cannot be written: its manifest is all that the block gets, and a stage that is not done is refused.

    Args:
        graph_dir: A graph, an empty folder, or none yet; what a block that fails leaves empty is removed again.
        wait: Wait for another writer instead of raising.
        check: Raises what speaks against it, once no other writer can begin and before anything is removed.

    Returns:
        The manifest; an empty one where there is none.

    Raises:
        OptionError: If it is a file, or a folder that holds something else than a graph.
        LockedError: If another command is writing here; it is named.
        ArtifactError: If graph.json cannot be read.
    """
    _require_ours(graph_dir)
    if _sealed(graph_dir):
        yield Manifest.load(graph_dir)
        return
    made_here = not graph_dir.exists()
    lock = writer_lock(graph_dir)
    advice = "Wait until it has ended, or choose another --graph-dir."
    try:
        with exclusive(lock, where=graph_dir, advice=advice, wait=wait):
            try:
                if check is not None:
                    check()
                manifest = Manifest.load_or_new(graph_dir)
                _settle(graph_dir, manifest)
                yield manifest
            finally:
                if made_here and _nothing_in(graph_dir):
                    # While it is held: who waits for this file sees that it is gone, and makes another.
                    lock.unlink()
    finally:
        if made_here:
            # Left where anything is in them.
            with suppress(OSError):
                lock.parent.rmdir()
                graph_dir.rmdir()


def writer_lock(graph_dir: Path) -> Path:
    """Return where the lock of a graph's only writer lies."""
    return graph_dir / RECORDS / _LOCK


def _sealed(graph_dir: Path) -> bool:
    """Whether it is a graph in which nothing can be written, as on a read-only mount."""
    folders = [folder for folder in (graph_dir, graph_dir / RECORDS) if folder.is_dir()]
    return (graph_dir / schemas.MANIFEST_FILE).is_file() and not all(map(writable, folders))


def _require_ours(graph_dir: Path) -> None:
    """Refuse a folder that holds files, and neither a manifest nor records of ours; hidden files do not count."""
    if graph_dir.exists() and not graph_dir.is_dir():
        raise OptionError(f"{graph_dir}: is a file. Choose another --graph-dir.")
    if not graph_dir.exists() or (graph_dir / schemas.MANIFEST_FILE).exists() or (graph_dir / RECORDS).is_dir():
        return
    held = sorted(path.name for path in graph_dir.iterdir() if not path.name.startswith("."))
    if held and not any(_old_receipts(graph_dir)):
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise OptionError(
            f"{graph_dir}: is neither a graph nor empty (it holds {held[0]}{more}), and files of others are left alone. "
            "Choose another --graph-dir."
        )


def _old_receipts(graph_dir: Path) -> Iterator[tuple[Path, Receipt]]:
    """Receipts that lie beside their files, as in format 1."""
    for folder in (".", *_FOLDERS):
        if (graph_dir / folder).is_symlink():
            continue
        for path in sorted((graph_dir / folder).glob("*.json")):
            receipt = read_receipt(path)
            if receipt is not None and graph_dir / f"{receipt.path}.json" == graph_dir / folder / path.name:
                yield path, receipt


def _settle(graph_dir: Path, manifest: Manifest) -> None:
    """Remove what killed writers left, and have every receipt among the records."""
    for folder in (graph_dir, *(graph_dir / name for name in _FOLDERS), *_record_folders(graph_dir)):
        if not folder.is_symlink():
            remove_stale_temporaries(folder)
    old = list(_old_receipts(graph_dir)) if manifest.format < schemas.FORMAT_VERSION or not manifest.generation else []
    stages = (*manifest.superseded.values(), *manifest.stages.values())
    listed = [receipt for stage in stages for receipt in stage.files.values()]
    tokenizer = _unlisted(graph_dir, schemas.TOKENIZER) if old else []
    # What the manifest lists may be older than what lies beside the files, where a run was killed.
    for receipt in (*(receipt for _, receipt in old), *listed, *tokenizer):
        if not receipt_path(graph_dir, receipt.path).exists():
            write_receipt(graph_dir, receipt)
    for path, _ in old:
        path.unlink()
    if manifest.format < schemas.FORMAT_VERSION:
        manifest.save(graph_dir)


def _unlisted(graph_dir: Path, folder: str) -> list[Receipt]:
    """Receipts, of no work, of files that had none in format 1."""
    paths = [path for path in sorted((graph_dir / folder).rglob("*")) if path.is_file() and not path.is_symlink()]
    return [
        Receipt(path=path.relative_to(graph_dir).as_posix(), digest=digest_file(path), rows=0, bytes=path.stat().st_size, key="")
        for path in paths
    ]


def _record_folders(graph_dir: Path) -> Iterator[Path]:
    receipts = graph_dir / RECORDS / "receipts"
    return (receipts / name for name in (".", *_FOLDERS))


def _nothing_in(graph_dir: Path) -> bool:
    """Whether a folder holds only the lock and what belongs to it."""
    names = [path.name for path in (*graph_dir.iterdir(), *(graph_dir / RECORDS).iterdir())]
    return all(name == RECORDS or name.startswith(_LOCK) for name in names)


def run_stage(
    graph_dir: Path,
    manifest: Manifest,
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    work: Callable[[str], Made],
    *,
    overwrite: bool,
    remedy: str = "",
    key: str | None = None,
    check: Callable[[], object] | None = None,
) -> bool:
    """Do a stage, unless it is done with these options and inputs and all its files are intact.

    Args:
        graph_dir: The graph, which this process is `writing`.
        manifest: Its manifest; changed and saved.
        name: Of the stage.
        config: The options that decide its bytes.
        inputs: Digest of all that it reads.
        work: Writes what is missing; called with the key of the receipts.
        overwrite: Whether a stage of other options or inputs is replaced.
        remedy: What else may help where the input is another, for the message.
        key: Of the receipts, where more than config and inputs decides the bytes.
        check: Raises what speaks against the work, before anything is forgotten.

    Returns:
        Whether there was anything to do.

    Raises:
        OptionError: If it is done with other options, and `overwrite` is not given; or it is not done, and cannot be written.
        ArtifactMismatch: If it is done from other inputs, and `overwrite` is not given.
    """
    if up_to_date(manifest, graph_dir, name, config, inputs, overwrite=overwrite, remedy=remedy):
        return False
    require_writable(graph_dir, name)
    if check is not None:
        check()
    done = manifest.stages.get(name)
    wanted = stage_key(config, inputs)
    if done is not None and stage_key(done.config, done.inputs) != wanted:
        # Before files change; where they are only repaired, what was made from them stays right.
        manifest.drop(name)
        manifest.save(graph_dir)
    started = time.monotonic()
    made = work(key or wanted)
    files = {receipt.path: receipt for receipt in made.files}
    seconds = round(time.monotonic() - started, 3)
    stage = Stage(config=dict(config), inputs=dict(inputs), seconds=seconds, files=dict(sorted(files.items())), facts=made.facts)
    enter_stage(graph_dir, manifest, name, stage)
    return True


def require_writable(graph_dir: Path, name: str) -> None:
    """Refuse a graph that cannot be written, before work for a stage begins.

    Raises:
        OptionError: If that is so.
    """
    if _sealed(graph_dir):
        raise OptionError(
            f"{graph_dir}: the {name} stage is not done with these options, or damaged, and the folder cannot be written. "
            "Copy the graph to where it can, or check the permissions."
        )


def enter_stage(
    graph_dir: Path, manifest: Manifest, name: str, stage: Stage, *, superseded: Mapping[str, Stage] | None = None
) -> None:
    """Put a finished stage into the manifest, and save it; files of its folders that it does not list are removed if they are ours.

    Args:
        graph_dir: The graph, which this process is `writing`.
        manifest: Its manifest.
        name: Of the stage.
        stage: What was made. Stages made from other bytes of it leave the manifest.
        superseded: What the manifest keeps of those that leave; None: what it kept before.
    """
    before = manifest.stages.get(name)
    if before is None or _columns(before) != _columns(stage):
        manifest.drop(name)
    manifest.stages[name] = stage
    if superseded is not None:
        manifest.superseded = dict(superseded)
    manifest.superseded.pop(name, None)
    for folder in {path.split("/")[0] for path in stage.files if "/" in path}:
        remove_strays(graph_dir, folder, stage.files)
    manifest.save(graph_dir)


def _columns(stage: Stage) -> dict[str, dict[str, str]]:
    return {name: receipt.columns for name, receipt in stage.files.items() if receipt.columns}
