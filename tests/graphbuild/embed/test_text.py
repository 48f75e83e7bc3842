"""Text policy, prompts, and what makes two captions one text."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from helpers_embed import column, embed, numbered_captions, write_captions
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.embed.hashing import HashingEncoder
from graphbuild.embed.text.table import Prompts, TextPolicy, TextTable, hash_tokens
from graphbuild.errors import OptionError
from graphbuild.store.manifest import Manifest


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = TextPolicy().clean(text)
    assert TextPolicy().clean(once) == once


@given(st.text())
def test_cleaning_alters_nothing_but_composition_and_white_space(text: str) -> None:
    def bare(value: str) -> str:
        return "".join(unicodedata.normalize("NFC", value).split())

    assert "".join(TextPolicy().clean(text).split()) == bare(text)


def test_composed_and_decomposed_letters_are_one_text() -> None:
    assert TextPolicy().clean("cafe\u0301") == TextPolicy().clean("caf\u00e9") == "caf\u00e9"


def test_replacements_are_applied_and_recorded(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["<person> on a horse"]})
    embed(tmp_path / "g", path, replacements=("<person>=someone",))
    assert column(tmp_path / "g", "texts", "text") == ["someone on a horse"]
    assert Manifest.load(tmp_path / "g").dataset["replacements"] == [["<person>", "someone"]]


@pytest.mark.parametrize("entry", ["nothing", "=new"])
def test_malformed_replacement_is_refused(entry: str) -> None:
    with pytest.raises(OptionError, match="OLD=NEW"):
        TextPolicy.parse([entry])


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_template_needs_exactly_one_place(template: str) -> None:
    with pytest.raises(OptionError, match="exactly once"):
        Prompts.parse([template])


@given(st.text(), st.sampled_from(["a photo of a {}", "{} in the wild", "the {}."]))
def test_class_name_is_recovered_from_its_text(name: str, template: str) -> None:
    prompts = Prompts.parse([template, "a drawing of a {}"])
    assert prompts.name_of(prompts.all_of(name)[0]) == name


def test_text_hash_is_xxh3_of_the_int32_tokens() -> None:
    tokens = np.array([101, 1037, 3899, 102], np.int32)
    assert hash_tokens([tokens])[0] == xxhash.xxh3_64_intdigest(tokens.tobytes())


@settings(deadline=None)
@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), max_size=40), st.integers(1, 7))
def test_ids_go_by_first_appearance_of_the_token_sequence_whatever_the_batches(names: list[str], size: int) -> None:
    table = TextTable(HashingEncoder(4), Prompts())
    ids = [int(i) for start in range(0, len(names), size) for i in table.add(names[start : start + size])]
    first: dict[tuple[str, ...], int] = {}
    assert ids == [first.setdefault(tuple(name.lower().split()), len(first)) for name in names]
    assert table.counts().tolist() == [ids.count(text_id) for text_id in range(len(first))]


def test_equal_token_sequences_are_one_text_as_first_seen(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": ["A  Dog", "a dog", "A DOG"]}))
    assert column(tmp_path / "g", "texts", "text") == ["A Dog"]
    assert column(tmp_path / "g", "counts", "sample_count") == [3]
    assert Manifest.load(tmp_path / "g").counts["duplicate_captions"] == 2


def test_shards_hold_contiguous_ids_and_counts_align(tmp_path: Path) -> None:
    captions = numbered_captions(25)
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": captions + captions[:5]}), shard_size=10)
    parts = [pq.read_table(path)["text_id"].to_pylist() for path in sorted((tmp_path / "g" / "texts").glob("*.parquet"))]
    assert parts == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert column(tmp_path / "g", "counts", "sample_count") == [2] * 5 + [1] * 20
    assert column(tmp_path / "g", "samples", "text_id") == [*range(25), *range(5)]


def test_sample_hash_is_xxh3_of_the_id(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x"], "file": ["sämple.jpg"]})
    embed(tmp_path / "g", path, id_column="file")
    assert column(tmp_path / "g", "samples", "sample_hash") == [xxhash.xxh3_64_intdigest("sämple.jpg".encode())]


def test_hash_of_a_class_covers_all_its_prompts(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"name": ["dog"]})
    embed(tmp_path / "g", path, templates=("a photo of a {}",))
    embed(tmp_path / "h", path, templates=("a photo of a {}", "a drawing of a {}"))
    assert column(tmp_path / "g", "texts", "text") == column(tmp_path / "h", "texts", "text")
    assert column(tmp_path / "g", "texts", "text_hash") != column(tmp_path / "h", "texts", "text_hash")


def test_reserved_column_names_cannot_be_kept(tmp_path: Path) -> None:
    path = write_captions(tmp_path / "a.parquet", {"caption": ["x"], "text_id": [3]})
    with pytest.raises(OptionError, match="text_id"):
        embed(tmp_path / "g", path, keep_columns=("text_id",))
