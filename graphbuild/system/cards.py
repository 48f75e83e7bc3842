"""Cards, as README.md of a data set or a model on the Hugging Face hub, and bringing folders there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphbuild.errors import OptionError, ResourceError, one_line, redact

RepositoryKind = Literal["dataset", "model"]
_IDENTIFIER = re.compile(r"[a-z0-9]+([.-][a-z0-9.]+)*")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """Where a folder goes on the hub."""

    name: str
    """`user/name`."""
    kind: RepositoryKind
    private: bool = False

    def require_token(self) -> None:
        """Make sure, before any work, that an upload could succeed.

        Raises:
            OptionError: If the name is none, or nobody is logged in.
        """
        from huggingface_hub import get_token

        if not _REPOSITORY.fullmatch(self.name):
            raise OptionError(f"--repo {self.name}: is not of the form user/name.")
        if get_token() is None:
            raise OptionError("--repo uploads, and there is no token. Set HF_TOKEN, run `hf auth login`, or leave --repo out.")

    def upload(self, folder: Path, files: Sequence[str]) -> str:
        """Make the repository if it is not there, bring some files of a folder there, and return its address.

        Raises:
            ResourceError: If it fails; the folder stays.
        """
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            made = api.create_repo(self.name, repo_type=self.kind, private=self.private or None, exist_ok=True)
            api.upload_folder(
                repo_id=self.name,
                repo_type=self.kind,
                folder_path=folder,
                allow_patterns=list(files),
                commit_message="Upload with X-CLR Graph",
            )
        # The hub raises errors of a dozen kinds, its own and the network's.
        except Exception as error:
            raise ResourceError(
                f"{self.name}: could not be uploaded ({type(error).__name__}: {redact(one_line(str(error)))[:200]}). "
                f"{folder} is complete: run the same command again, or upload it by hand."
            ) from None
        return str(made)


def front_matter(fields: Mapping[str, Any]) -> str:
    """Return the YAML that a card begins with; what is None is left out."""
    from huggingface_hub.repocard_data import CardData

    return f"---\n{CardData(**fields).to_yaml()}\n---\n"


def license_fields(stated: str | None) -> dict[str, str]:
    """Return a licence as the hub's YAML has it: an identifier such as cc-by-4.0, else `other` and its name."""
    if stated is None:
        return {}
    if _IDENTIFIER.fullmatch(stated):
        return {"license": stated}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", stated.lower()).strip("-") or "other"}


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ("", "")) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cell(value) for value in row)} |" for row in rows)])


def cell(value: object) -> str:
    """Return one cell: what came from a data set may hold anything."""
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def last_name(place: str | Path | None) -> str | None:
    """Return what a card says of a place on this machine, such as hf:/a/b:train: hf:b:train. Names of the hub stay."""
    if place is None:
        return None
    kind, mark, rest = str(place).partition(":")
    if mark and Path(rest).is_absolute():
        return f"{kind}:{Path(rest).name}"
    return Path(place).name if Path(place).is_absolute() else str(place)


def require_own_card(path: Path, introduction: str, command: str) -> None:
    """Refuse to replace a file that is no card of this program.

    Raises:
        OptionError: If there is one without the introduction that its cards have.
    """
    if path.exists() and introduction not in path.read_text(encoding="utf-8", errors="replace"):
        raise OptionError(f"{path}: exists, and is not a card that `{command}` wrote. Choose another --out.")
