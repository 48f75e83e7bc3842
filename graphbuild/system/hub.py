"""Data of Hugging Face: which files of a folder, or of a data set of the hub, are the split that is asked for.

A folder is what `datasets` writes (`save_to_disk`: Arrow streams that `state.json` lists, a folder for each of several splits) or
holds Parquet files as a data set of the hub does: told apart by the `configs` of its README.md, else by their names. Both
packages find files here, so that ids which are made of a file and a row are the same for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from graphbuild.errors import SourceError, UserError, one_line, redact
from graphbuild.system.decoding import parse_json
from graphbuild.system.inputs import PARQUET, expand_braces, is_hidden, suffix_of

if TYPE_CHECKING:
    import pyarrow as pa

PREFIX = "hf:"
"""How `train run --data` names such data."""
CARD = "README.md"
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps data sets of other formats as Parquet: CONFIG/SPLIT/0000.parquet."""
_CONVERTED_NAME = re.compile(r"([^/]+)/(?:partial-)?([^/]+)/\d{4,}\.parquet")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.\w+")
_KNOWN = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Words in the names of files and folders, as `datasets` understands them."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class Split:
    """The files of one split."""

    files: tuple[Path, ...]
    streams: bool
    """Whether they are Arrow streams, as `save_to_disk` writes them; else Parquet."""
    place: str
    """FOLDER or FOLDER:SPLIT, absolute, by which the same files are found again."""
    revision: str | None = None
    """Commit on the hub, where they were fetched from there."""


def find_split(source: str) -> Split:
    """Return the files of one split; those on the hub are fetched into the cache of huggingface_hub.

    Args:
        source: `FOLDER[:SPLIT]` or `user/name[@REVISION][:SPLIT]`; where a data set has several configurations, `CONFIG/SPLIT`.

    Raises:
        SourceError: If nothing is there, it cannot be reached, or SPLIT is needed or unknown; those that exist are named.
    """
    name, wanted = divide(source)
    if Path(name).is_dir():
        return _find(Path(name).absolute(), wanted)
    if not _REPOSITORY.fullmatch(name):
        raise SourceError(f"{name}: no such folder, and no name on the Hugging Face hub (user/name). Check --source.")
    folder, key, revision = _fetch(name, wanted)
    found = _find(folder, key)
    return Split(found.files, found.streams, found.place, revision)


def is_saved(source: str) -> bool:
    """Return whether a source, `FOLDER[:SPLIT]`, is a folder that `save_to_disk` wrote."""
    folder = Path(divide(source)[0])
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def divide(source: str) -> tuple[str, str | None]:
    """Return folder or name, and the split; None where none is named."""
    if Path(source).exists() or ":" not in source:
        return source, None
    name, _, wanted = source.rpartition(":")
    return name, wanted or None


def short_name(source: str) -> str:
    """Return what a graph of such data is called: the last part of its name, and the split."""
    name, wanted = divide(source)
    last = PurePosixPath(name.partition("@")[0]).name or "data"
    return last if wanted is None else f"{last}-{wanted.replace('/', '-')}"


def map_stream(path: Path) -> pa.Table:
    """Return an Arrow stream as a table, mapped and not copied.

    Raises:
        SourceError: If it is missing, none, or cut short.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not an Arrow stream, or a truncated one ({one_line(str(error))}). Save it again.") from None


def _find(folder: Path, wanted: str | None) -> Split:
    if (folder / _STATE).is_file():
        return Split(_saved_files(folder), True, str(folder) if wanted is None else f"{folder}:{wanted}")
    if (folder / _SPLITS).is_file():
        names = _read_json(folder / _SPLITS, lambda held: [str(name) for name in held["splits"]])
        chosen = _choose(str(folder), names, wanted)
        return Split(_saved_files(folder / chosen), True, f"{folder}:{chosen}")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if suffix_of(path.name) in PARQUET)
    names = [name for name in paths if not is_hidden(name)]
    if not names:
        raise SourceError(
            f"{folder}: holds neither what `datasets` saves ({_STATE} or {_SPLITS}) nor Parquet files. Save it with "
            "save_to_disk or to_parquet, or choose another --dataset."
        )
    splits = split_files(names, (folder / CARD).read_text(encoding="utf-8", errors="replace") if (folder / CARD).is_file() else "")
    chosen = _choose(str(folder), list(splits), wanted)
    return Split(tuple(folder / name for name in splits[chosen]), False, f"{folder}:{chosen}")


def _saved_files(folder: Path) -> tuple[Path, ...]:
    """The streams of one saved data set, in their order."""

    def listed(state: Any) -> list[str]:
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise SourceError(f"{folder}: holds a selection of rows beside the rows. Save it again after flatten_indices().")
        return [str(one["filename"]) for one in state["_data_files"]]

    files = tuple(folder / name for name in _read_json(folder / _STATE, listed))
    if any(file.parent != folder for file in files):
        raise SourceError(f"{folder / _STATE}: names files outside its folder. Save the data set again.")
    return files


def _read_json(path: Path, pick: Callable[[Any], list[str]]) -> list[str]:
    try:
        return pick(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: not as `datasets` writes it ({type(error).__name__}). Save the data set again.") from None


def _choose(where: str, names: Sequence[str], wanted: str | None) -> str:
    fitting = [name for name in names if wanted is None or name == wanted or name.endswith(f"/{wanted}")]
    exact = [name for name in fitting if name == wanted]
    if len(exact or fitting) == 1:
        return (exact or fitting)[0]
    what = f"no split {wanted!r}" if not fitting else f"{len(fitting)} splits to choose from"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise SourceError(
        f"{where}: {what}; there are: {shown or 'none'}. Name one, as in {where}:{(fitting or names or ['train'])[0]}."
    )


def split_files(names: Sequence[str], card: str) -> dict[str, list[str]]:
    """Return the Parquet files by split: `SPLIT`, or `CONFIG/SPLIT` where there are several configurations.

    Args:
        names: Paths of the files, relative to the data set.
        card: Its README.md; its `configs` say what is what, else the files' names do.
    """
    found: dict[str, list[str]] = {}
    if configs := _card_configs(card):
        for config, split, patterns in configs:
            key = split if len({name for name, _, _ in configs}) == 1 else f"{config}/{split}"
            fits = [re.compile(_expression(one)) for pattern in patterns for one in expand_braces(pattern)]
            if files := [name for name in names if any(fit.fullmatch(name) for fit in fits)]:
                found[key] = files
        return found
    for name in names:
        found.setdefault(_split_of(name), []).append(name)
    return found


def _card_configs(card: str) -> list[tuple[str, str, list[str]]]:
    """Name, split and patterns of each part of a card's `configs`."""
    if not card.startswith("---"):
        return []
    from huggingface_hub import DatasetCard

    try:
        read: Any = DatasetCard(card, ignore_metadata_errors=True).data
        held = read.to_dict().get("configs") or []
        return [part for config in held for part in _parts(config)]
    # Whatever else stands there says nothing about files; so do errors of YAML, of which there are a dozen kinds.
    except Exception:
        return []


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    name, folder = str(config.get("config_name", "default")), str(config.get("data_dir") or "").strip("/")
    held = config.get("data_files") or ["**"]
    listed = held if isinstance(held, list) and any(isinstance(one, dict) for one in held) else [{"split": "train", "path": held}]
    for one in listed:
        paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
        yield name, str(one["split"]), [f"{folder}/{path}".lstrip("/") for path in paths]


def _expression(pattern: str) -> str:
    """A pattern as a regular expression: `*` stays within a folder, `**` does not."""
    signs = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.removeprefix("./"))
    return "".join(signs.get(part, re.escape(part)) for part in parts)


def _split_of(name: str) -> str:
    """The split of a file, by its name, else by the folders that it lies in; train where neither says anything."""
    if converted := _CONVERTED_NAME.fullmatch(name):
        return f"{converted[1]}/{converted[2]}"
    path = PurePosixPath(name)
    if shard := _SHARD.fullmatch(path.name):
        return shard[1]
    for part in (path.stem, *reversed(path.parent.parts)):
        words = re.split(r"[^a-z]+", part.lower())
        if fitting := [split for split, known in _KNOWN.items() if any(word in words for word in known)]:
            return fitting[0]
    return "train"


def _fetch(name: str, wanted: str | None) -> tuple[Path, str, str]:
    """Fetch one split from the hub: its folder in the cache, its name there, and the commit."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    repository, _, revision = name.partition("@")
    try:
        for at in (revision or "main", _CONVERTED):
            info = HfApi().dataset_info(repository, revision=at)
            names = sorted(one.rfilename for one in info.siblings or [])
            files = [one for one in names if suffix_of(one) in PARQUET and not is_hidden(one)]
            if files or revision:
                break
        held = CARD in names
        place: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset", "revision": info.sha}
        card = Path(hf_hub_download(filename=CARD, **place)).read_text(encoding="utf-8", errors="replace") if held else ""
        splits = split_files(files, card)
        if not splits:
            raise SourceError(f"{name}: holds no Parquet files on the hub. Save it with `datasets`, and give the folder.")
        chosen = _choose(name, list(splits), wanted)
        folder = snapshot_download(allow_patterns=[_literal(one) for one in (*splits[chosen], CARD)], **place)
    # The hub raises errors of a dozen kinds, its own and the network's.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise SourceError(
            f"{name}: neither a folder here, nor could it be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {redact(one_line(str(error)))[:200]}). Check the name, or give a folder."
        ) from None
    return Path(folder), chosen, str(info.sha)


def _literal(name: str) -> str:
    """A file's name as a pattern that fits nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)
