"""Flickr8k and Flickr30k captions, in the forms in which they are handed around; ids are file names, five captions each.

`.token` (`results_20130124.token`, `Flickr8k.token.txt`): `<file>#<number>`, a tab, the caption. `captions.txt`: CSV with
the header `image,caption`. `results.csv`: `image_name| comment_number| comment`, without quotes; in one of its rows the
publisher forgot the second bar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.csv import CsvFormat
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Broken, Record, Row, RowSource, Wanted
from graphbuild.datasets.formats.tsv import repaired_line
from graphbuild.errors import SourceError

_TOKEN = re.compile(r"(?P<file>[^\t]+)#(?P<number>\d+)\t(?P<caption>.*)")
_BARS = re.compile(r"(?P<file>[^|]+?)\s*\|\s*(?P<number>\d+)\s*[|\s]\s*(?P<caption>.*)")
_CSV_NAMES = {"image": "image", "image_name": "image", "caption": "caption", "comment": "caption"}


class FlickrFormat:
    """One caption a row."""

    def columns(self, file: File) -> list[str] | None:
        """Return the two of every form."""
        with file.text() as stream:
            return ["image", "caption"] if stream.read(1) else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the captions of a file; a line that does not fit is broken.

        Raises:
            SourceError: If the file has none of the known forms.
        """
        with file.text() as stream:
            first, _ = repaired_line(stream.readline())
        if _TOKEN.fullmatch(first):
            return _matched(file, _TOKEN, wanted, header=False)
        if first.startswith("image_name|"):
            return _matched(file, _BARS, wanted, header=True)
        names = {_CSV_NAMES[name]: name for name in first.split(",") if name in _CSV_NAMES}
        if len(names) < 2:
            raise SourceError(
                f"{file}: no Flickr captions: line 1 is {first[:80]!r}. Known are <file>#0<TAB>caption, "
                "image,caption and image_name| comment_number| comment; for others use --dataset tsv or csv."
            )
        ids = names[wanted.sample_id] if wanted.sample_id else None
        taken = Wanted(caption=names[wanted.caption], sample_id=ids, kept=tuple(names[name] for name in wanted.kept))
        return CsvFormat().rows(file, taken)


def _matched(file: File, pattern: re.Pattern[str], wanted: Wanted, *, header: bool) -> Iterator[Record]:
    with file.text() as stream:
        for number, line in enumerate(stream, 1):
            text, invalid = repaired_line(line)
            if header and number == 1:
                continue
            match = pattern.fullmatch(text)
            if match is None:
                yield Broken(f"line {number:,} is not <file>, number, caption: {text[:80]!r}. Mend it.")
                continue
            values = {"image": match["file"], "caption": match["caption"]}
            yield Row(
                captions=[values[wanted.caption]],
                sample_id=values[wanted.sample_id] if wanted.sample_id else None,
                kept=tuple(values[name] for name in wanted.kept),
                invalid=invalid,
            )


SOURCE = RowSource(
    SourceInfo(
        name="flickr",
        what="Flickr8k and Flickr30k captions: results_20130124.token, Flickr8k.token.txt, captions.txt or results.csv; "
        "ids are file names, each with its five captions.",
        size="8,000 or 31,783 pictures with five captions each",
        licence="research only; the pictures are under Flickr's terms",
        origin="--source: one of these files, from the University of Illinois or whoever mirrors it",
    ),
    FlickrFormat(),
    (".token", ".csv", ".txt"),
    caption_column="caption",
    id_column="image",
    repeated_ids=True,
)
