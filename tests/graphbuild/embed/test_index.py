"""The FAISS index: built, rebuilt, and what goes wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_embed import embed, graphbuild, numbered_captions, write_captions
from helpers_graph import clustered_vectors, write_graph

from graphbuild.embed.index import build_index
from graphbuild.embed.nearest import VectorIndex, nearest_texts
from graphbuild.errors import ArtifactError

CAPTIONS = numbered_captions(20)


def test_full_disk_is_an_error_of_the_system_and_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    embedded = tmp_path / "g"
    manifest = write_graph(embedded, clustered_vectors(300, 16))
    monkeypatch.setattr("graphbuild.store.files.atomic_path", on_a_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        build_index(embedded, manifest, overwrite=True)
    assert not (embedded / "index.faiss").exists()


def test_an_index_that_does_not_fit_the_memory_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("graphbuild.embed.index.free_memory", lambda: 1000)
    build_index(tmp_path, write_graph(tmp_path, clustered_vectors(300, 16)), overwrite=True, flat_limit=100)
    assert "300 vectors take about" in capsys.readouterr().err


def test_damaged_index_is_named_and_rebuilt_by_embed(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    embed(tmp_path / "g", source)
    index = tmp_path / "g" / "index.faiss"
    content = index.read_bytes()
    index.write_bytes(content[:50])
    with pytest.raises(ArtifactError, match=r"index\.faiss has 50 bytes"):
        nearest_texts(tmp_path / "g", "a dog")
    assert embed(tmp_path / "g", source).built == ("index",)
    assert index.read_bytes() == content


def test_verify_names_an_index_with_a_flipped_bit(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS}))
    index = tmp_path / "g" / "index.faiss"
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    answer = graphbuild("verify", "--graph-dir", tmp_path / "g")
    assert answer.returncode == 1
    assert "index.faiss" in answer.stdout + answer.stderr


def test_an_index_that_faiss_cannot_read_is_one_clear_error(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS}))
    index = tmp_path / "g" / "index.faiss"
    index.write_bytes(bytes(len(index.read_bytes())))
    with pytest.raises(ArtifactError, match=r"index\.faiss: FAISS cannot read it\. Run `graphbuild embed` again"):
        VectorIndex(index)
    with pytest.raises(ArtifactError, match=r"index\.faiss has other bytes than were written"):
        nearest_texts(tmp_path / "g", "a dog")
