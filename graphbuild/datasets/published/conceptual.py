"""What CC3M and CC12M share: a TSV of captions and URLs as published, or what img2dataset made of it. Ids are URLs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from graphbuild.datasets.base import OpenSource, SourceInfo, SourceOptions
from graphbuild.datasets.formats.files import File, find_files
from graphbuild.datasets.formats.img2dataset import SUFFIXES, Img2DatasetSource
from graphbuild.datasets.formats.rows import Record, Row, RowSource, Wanted
from graphbuild.datasets.formats.tsv import TsvFormat
from graphbuild.datasets.published.download import fetch
from graphbuild.errors import OptionError, SourceError

_DOWNLOADS = Path("data")


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """How a data set is published."""

    columns: tuple[str, str]
    """Of its TSV, which has no header."""
    url: str | None
    """None where it has to be fetched by hand."""
    by_hand: str
    """Where it is offered."""
    replacements: tuple[str, ...] = ()
    """For its placeholders."""
    sha256: str | None = None
    """Of the TSV, where somebody has published it."""


class UrlPairs:
    """TSV without a header, of captions and URLs; files whose first line has no URL where one belongs are refused."""

    def __init__(self, columns: tuple[str, str]) -> None:
        self._names = columns
        self._format = TsvFormat(columns)

    def columns(self, file: File) -> list[str] | None:
        """Return the two, if the first line fits.

        Raises:
            SourceError: If it does not.
        """
        names = self._format.columns(file)
        if names is None:
            return None
        first = next(self._format.rows(file, Wanted(caption="caption", sample_id="url", kept=())))
        url = (first.sample_id or "") if isinstance(first, Row) else ""
        if "://" not in url:
            raise SourceError(
                f"{file}: line 1 has {url[:60]!r} where a URL should be; the file should be "
                f"{'<TAB>'.join(self._names)}, without a header."
            )
        return names

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the pairs of a file."""
        return self._format.rows(file, wanted)


class ConceptualSource:
    """The source of CC3M or CC12M: the published list of captions and addresses."""

    def __init__(self, info: SourceInfo, publication: Publication) -> None:
        self.info = info
        self.publication = publication
        self._pairs = RowSource(
            info,
            UrlPairs(publication.columns),
            (".tsv",),
            caption_column="caption",
            id_column="url",
            repeated_ids=True,
            replacements=publication.replacements,
        )
        self._crawl = Img2DatasetSource(info, replacements=publication.replacements)

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Download the TSV, unless --source names files or it is there.

        Raises:
            OptionError: If it has to be fetched by hand.
        """
        if options.sources:
            return
        if self.publication.url is None:
            raise OptionError(f"--dataset {self.info.name} needs --source: {self.publication.by_hand}")
        fetch(self.publication.url, self._path(), sha256=self.publication.sha256)

    def _path(self) -> Path:
        return _DOWNLOADS / str(self.publication.url).rsplit("/", 1)[-1]

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Return the TSV, or the crawl that --source names.

        Raises:
            SourceError: If files are missing or of another form.
        """
        if options.sources:
            found = find_files(options.sources, dataset=self.info.name, suffixes=(".tsv", *SUFFIXES))
            crawled = any(file.suffix in SUFFIXES for file in found.files)
            return (self._crawl if crawled else self._pairs).open(options, graph_dir)
        opened = self._pairs.open(replace(options, sources=(str(self._path()),)), graph_dir)
        opened.facts["download"] = asdict(fetch(str(self.publication.url), self._path(), sha256=self.publication.sha256))
        return opened
