"""What is compared between a command and the workers that it asks: encoders, versions and folders."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from helpers_embed import embed, numbered_captions, write_captions

from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import find_encoder, missing_on_this_machine
from graphbuild.errors import ArtifactMismatch
from graphbuild.store.manifest import Manifest
from graphbuild.system.worker_checks import Expected, inspect_worker, versions


def test_encoder_that_differs_on_a_worker_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "modules.json").write_text("[]")
    spec = find_encoder(str(folder))
    assert missing_on_this_machine(spec) is None
    (folder / "modules.json").write_text("[ ]")
    assert "has another encoder at" in str(missing_on_this_machine(spec))
    (folder / "model.safetensors").write_bytes(b"others")
    assert f"here {spec.sha256[:12]}" in str(missing_on_this_machine(spec))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "modules.json").unlink()
    folder.rmdir()
    assert "has no encoder at" in str(missing_on_this_machine(spec))


def test_receipts_say_where_and_with_what_vectors_were_made(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(3)}))
    stage = Manifest.load(tmp_path / "g").stages["embed"]
    facts = next(iter(stage.files.values())).facts
    assert (facts["host"], facts["weights"], facts["versions"]) == (platform.node(), stage.config["sha256"], versions())


def test_an_encoder_is_compared_with_its_digest_when_it_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "modules.json").write_text("[]")
    spec = find_encoder(str(folder))
    (folder / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(ArtifactMismatch, match=rf"has another encoder at {folder}.*here {spec.sha256[:12]}"):
        load_encoder(spec)


def looked(folder: Path, **changes: object) -> str | None:
    """What a worker would say of a folder that the client has probed."""
    probe = folder / ".probe-1.tmp"
    expected = {"versions": {}, "probe": str(probe), "token": "1", "shared": (str(folder),), "check": None, **changes}
    return inspect_worker(Expected(**expected))[0]  # type: ignore[arg-type]


def test_folder_that_is_missing_or_another_on_a_worker_is_named(tmp_path: Path) -> None:
    assert "sees another" in str(looked(tmp_path))
    (tmp_path / ".probe-1.tmp").write_text("1")
    assert looked(tmp_path) is None
    assert "sees another" in str(looked(tmp_path, token="2"))
    assert f"does not see {tmp_path}/gone" in str(looked(tmp_path, shared=(f"{tmp_path}/gone",)))
    assert "runs graphbuild" in str(looked(tmp_path, versions={"graphbuild": "0"}))
