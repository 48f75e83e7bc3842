"""One webdataset shard, read once from end to end: where each sample's image and JSON lie, and its id.

Only headers and JSON are read; images are skipped over. Which members form a sample, and what its id is, is settled in
`graphbuild.system.archives`, because the captions are read by the same rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from graphbuild.errors import SourceError
from graphbuild.system.archives import OWN_FIELD, DamagedArchive, Sample, Shard, download_failed, leaving_out

_BUFFER = 1 << 14


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
    hidden: int = 0
    """Members whose names begin with a dot."""
    broken: int = 0
    """Samples that are damaged, and places beyond which the shard cannot be read."""

    def skip(self, _why: str) -> None:
        """Count what is left out."""
        self.broken += 1


def scan_shard(path: Path, id_field: str | None, name: str | None = None, skip_broken: bool = False) -> ScannedShard:
    """Read one shard's headers and JSON.

    Args:
        path: The shard.
        id_field: Key of the JSON that holds the id; None: the usual ones, else shard and key.
        name: What ids call the shard; None: its file name.
        skip_broken: Count what is damaged, and leave it out.

    Raises:
        SourceError: If it is missing, cut short, no tar file, or a sample lacks the id that is asked for.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as stream:
            found = ScannedShard()
            shard = Shard(name or path.name, stream, path.stat().st_size, id_field)
            skip = found.skip if skip_broken else None
            with leaving_out(skip):
                for sample in shard.samples():
                    with leaving_out(skip):
                        _add(found, shard, sample)
            found.hidden = shard.hidden
            return found
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. Check --data.") from None
    except DamagedArchive as error:
        raise SourceError(f"{path}: {error}. Was it copied or downloaded completely? Replace it, or move it away.") from None


def _add(found: ScannedShard, shard: Shard, sample: Sample) -> None:
    record, image, meta = shard.record(sample), sample.picture, sample.members.get("json")
    if download_failed(record.get("status")) and OWN_FIELD not in record:
        found.failed += 1
    elif image is None:
        found.without_image += 1
    else:
        found.sample_ids.append(shard.sample_id(sample, record))
        found.images.append((image.offset, image.size))
        found.metas.append((meta.offset, meta.size) if meta else (0, 0))
