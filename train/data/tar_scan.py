"""One webdataset shard, read once from end to end: where each sample's image and JSON lie, and its id.

A sample is a run of members that share a key: KEY.jpg, KEY.txt, KEY.json, as img2dataset writes them. Only headers and
JSON are read; images are skipped over. The parser knows what tar writers in use produce (ustar, pax and GNU long names),
and refuses a shard that is cut short or damaged, by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from graphbuild.errors import SourceError
from train.data.imagefolder import SUFFIXES

ID_FIELDS = ("sample_id", "url")
"""Keys of a sample's JSON that hold its id, unless another is named; the first that is there counts."""
_BLOCK = 512
_REGULAR = (b"0", b"\0")
_BUFFER = 1 << 14


class DamagedShard(Exception):
    """What is wrong with a shard, in a few words."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard."""

    name: str
    offset: int
    """Of its bytes in the shard."""
    size: int


@dataclass(slots=True)
class ScannedShard:
    """The samples of one shard, in its order, as columns."""

    sample_ids: list[str] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size."""
    metas: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size of the JSON; size 0 where there is none."""
    failed: int = 0
    """Samples that the downloader marked as failed."""
    without_image: int = 0


def scan_shard(path: Path, id_field: str | None) -> ScannedShard:
    """Read one shard's headers and JSON.

    Args:
        path: The shard.
        id_field: Key of the JSON that holds the id; None: `ID_FIELDS`, else the sample's key.

    Raises:
        SourceError: If it is missing, cut short, no tar file, or a sample lacks the id that is asked for.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as stream:
            found = ScannedShard()
            for key, members in _samples(read_members(stream, path.stat().st_size)):
                _add(found, stream, key, members, id_field)
            return found
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. Check --data.") from None
    except DamagedShard as error:
        raise SourceError(f"{path}: {error}. Was it copied or downloaded completely? Replace it, or move it away.") from None


def read_members(stream: IO[bytes], total: int) -> Iterator[Member]:
    """Every regular file of a tar stream of `total` bytes, in order; the stream may be read and moved between two of them."""
    position, long_name = 0, None
    while True:
        stream.seek(position)
        header = stream.read(_BLOCK)
        if len(header) < _BLOCK:
            raise DamagedShard(f"cut short at byte {total:,}, for the closing block is missing")
        if not header.strip(b"\0"):
            return
        kind, size, name = _parse_header(header, position)
        offset = position + _BLOCK
        position = offset + -(-size // _BLOCK) * _BLOCK
        if position > total:
            raise DamagedShard(f"cut short at byte {total:,}, in {long_name or name}, which ends at byte {position:,}")
        if kind == b"x":
            records = _pax_records(stream.read(size))
            long_name = records.get("path", long_name)
            if "size" in records:
                raise DamagedShard(f"holds a file of {records['size']} bytes, too large for a sample")
        elif kind == b"L":
            long_name = stream.read(size).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind != b"g":
            if kind in _REGULAR:
                yield Member(long_name or name, offset, size)
            long_name = None


def _parse_header(header: bytes, position: int) -> tuple[bytes, int, str]:
    """Type, size and name of a member."""
    try:
        stored = int(header[148:156].strip(b" \0") or b"0", 8)
        size = int.from_bytes(header[125:136], "big") if header[124] & 0x80 else int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        stored, size = -1, 0
    # The checksum counts its own eight bytes as spaces.
    if stored != sum(header) - sum(header[148:156]) + 8 * 32:
        raise DamagedShard(f"no tar header at byte {position:,}")
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0")
    # GNU's own format ends its magic with a space, and uses the prefix for something else.
    if header[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return header[156:157], size, name.decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """`LENGTH KEY=VALUE\\n`, one after another."""
    records, position = {}, 0
    while position < len(data):
        length, _, _ = data[position:].partition(b" ")
        try:
            end = position + int(length)
            key, _, value = data[position + len(length) + 1 : end - 1].partition(b"=")
            records[key.decode()] = value.decode()
        except ValueError:
            raise DamagedShard("holds a pax header that cannot be read") from None
        if end <= position:
            raise DamagedShard("holds a pax header that cannot be read")
        position = end
    return records


def _samples(members: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Members by what follows the first dot of their file name, a sample at a time."""
    key, parts = "", dict[str, Member]()
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if folder + slash + stem != key:
            if parts:
                yield key, parts
            key, parts = folder + slash + stem, {}
        parts[suffix.lower()] = member
    if parts:
        yield key, parts


def _add(found: ScannedShard, stream: IO[bytes], key: str, members: dict[str, Member], id_field: str | None) -> None:
    image = next((member for suffix, member in members.items() if f".{suffix}" in SUFFIXES), None)
    meta = members.get("json")
    values = _read_json(stream, meta) if meta else {}
    if values.get("status", "success") != "success":
        found.failed += 1
    elif image is None:
        found.without_image += 1
    else:
        found.sample_ids.append(_sample_id(key, values, id_field))
        found.images.append((image.offset, image.size))
        found.metas.append((meta.offset, meta.size) if meta else (0, 0))


def _read_json(stream: IO[bytes], member: Member) -> dict[str, Any]:
    stream.seek(member.offset)
    return parse_meta(stream.read(member.size), member.name)


def parse_meta(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a sample."""
    try:
        values = json.loads(data)
    except ValueError as error:
        raise DamagedShard(f"{where} is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise DamagedShard(f"{where} is no JSON object")
    return values


def _sample_id(key: str, values: dict[str, Any], id_field: str | None) -> str:
    if id_field is not None:
        if values.get(id_field) is None:
            raise DamagedShard(
                f"sample {key} has no {id_field!r} in its JSON, which has {', '.join(values) or 'nothing'}; see --id-column"
            )
        return str(values[id_field])
    return default_id(values) or key


def default_id(values: dict[str, Any]) -> str | None:
    """The id in a sample's JSON, where no key is named."""
    return next((str(values[name]) for name in ID_FIELDS if values.get(name) is not None), None)
