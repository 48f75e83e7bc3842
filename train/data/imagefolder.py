"""Images in a folder of class folders. A sample's id is its path below the folder; its class is the first folder of that path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphbuild.errors import SourceError
from graphbuild.system.inputs import PICTURES, LeftOut, walk_pictures
from train.data.base import Encoded, Labels, encode_labels


class FolderImages:
    """Images below a folder, sorted by path."""

    def __init__(self, root: Path) -> None:
        """List the images.

        Raises:
            SourceError: If the folder is missing or holds none.
        """
        if not root.is_dir():
            raise SourceError(f"{root}: no such folder. Check --data.")
        self.name = str(root)
        self._root = root
        left_out = LeftOut()
        self.sample_ids: Sequence[str] = sorted(walk_pictures(root, left_out=left_out))
        self.skipped = {"hidden files": left_out.hidden, "files that are no pictures": left_out.other}
        """What was left out."""
        if not self.sample_ids:
            raise SourceError(f"{root}: holds no image files ({', '.join(PICTURES)}). Check --data.")

    def __len__(self) -> int:
        return len(self.sample_ids)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the bytes of some files; None where one went away."""
        return [self._read(self._root / self.sample_ids[index]) for index in indices]

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the class folders."""
        return [{"label": _folder_of(self.sample_ids[index])} for index in indices]

    def label_columns(self) -> tuple[str, ...]:
        """Return `label` alone: the class folder."""
        return ("label",)

    def labels(self, column: str) -> Labels:
        """Return codes of the class folders; -1 for files that lie in none.

        Raises:
            SourceError: If the column is not `label`.
        """
        if column != "label":
            raise SourceError(f"{self.name}: no label column {column!r}; a folder of images has one: label (its class folders).")
        return encode_labels([_folder_of(sample_id) for sample_id in self.sample_ids])

    def class_ids(self) -> Sequence[str] | None:
        """Return the class folders."""
        return [_folder_of(sample_id) or sample_id for sample_id in self.sample_ids]


def _folder_of(sample_id: str) -> str | None:
    return sample_id.split("/", 1)[0] if "/" in sample_id else None
