"""Names with definitions in place of prompts: what is read of WordNet's noun file, what is refused, what is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers_embed import column, embed, graphbuild

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.manifest import Manifest

TENCH, GOLDFISH, SHARK = "n00000100", "n00000350", "n00000600"
GLOSSES = {
    TENCH: ("tench 0 Tinca_tinca 0", "a fish of ponds; olive-green  "),
    GOLDFISH: ("gold_fish 0 Carassius 0", 'small golden or orange-red fish; "a fish | in a bowl"; "two of them"  '),
    SHARK: ("shark 0 sharks 1", 'a fish with teeth, "biter" to some: "the shark came"  '),
}
TEXTS = ["tench: a fish of ponds; olive-green", "gold fish: small golden or orange-red fish"]


def write_nouns(path: Path, glosses: Mapping[str, tuple[str, str]] = GLOSSES, *, shift: int = 0) -> Path:
    """A file in the format of WordNet's data.noun, each noun at its wnid's byte; what lies between is licence and blanks."""
    content = bytearray(b"  1 This software and database is being provided to you.  \n")
    for wnid, (words, gloss) in sorted(glosses.items()):
        content += b" " * (int(wnid[1:]) + shift - len(content) - 1) + b"\n"
        content += f"{wnid[1:]} 05 n 02 {words} 001 @ 00001740 n 0000 | {gloss}\n".encode()
    path.write_bytes(content)
    return path


def write_folders(root: Path, *classes: str) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        (root / name / "a.JPEG").write_bytes(b"")
    return root


@pytest.fixture
def nouns(tmp_path: Path) -> Path:
    return write_nouns(tmp_path / "data.noun")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "fish", TENCH, GOLDFISH)


def defined(graph_dir: Path, source: Path | None, definitions: Path, dataset: str = "imagefolder", **options: Any) -> list[str]:
    embed(graph_dir, source, dataset, definitions=str(definitions), **options)
    texts: list[str] = column(graph_dir, "texts", "text")
    return texts


def test_wnid_folders_become_name_and_definition_without_examples(tmp_path: Path, nouns: Path, pictures: Path) -> None:
    assert sorted(defined(tmp_path / "g", pictures, nouns)) == sorted(TEXTS)
    assert column(tmp_path / "g", "samples", "sample_id") == [f"{TENCH}/a.JPEG", f"{GOLDFISH}/a.JPEG"]


def test_folder_of_the_file_will_do(tmp_path: Path, nouns: Path, pictures: Path) -> None:
    assert sorted(defined(tmp_path / "g", pictures, nouns.parent)) == sorted(TEXTS)


def test_example_after_a_colon_is_cut_and_a_quoted_word_stays(tmp_path: Path, nouns: Path) -> None:
    assert defined(tmp_path / "g", write_folders(tmp_path / "sea", SHARK), nouns) == ['shark: a fish with teeth, "biter" to some']


def test_template_goes_around_name_and_definition(tmp_path: Path, nouns: Path, pictures: Path) -> None:
    made = defined(tmp_path / "g", pictures, nouns, templates=("a photo of a {}",))
    assert sorted(made) == sorted(f"a photo of a {text}" for text in TEXTS)


# Two of ImageNet's wnids, and two hands' words for them.
IMAGENET = {"n01440764": ("Tinca 0 T 0", "a pond fish"), "n01443537": ("Carassius 0 C 0", "a bowl fish")}


def test_imagenet_folders_keep_their_plain_names_before_the_definition(tmp_path: Path) -> None:
    nouns = write_nouns(tmp_path / "data.noun", IMAGENET)
    made = defined(tmp_path / "g", write_folders(tmp_path / "train", *IMAGENET), nouns, "imagenet")
    assert made == ["tench: a pond fish", "goldfish: a bowl fish"]
    assert column(tmp_path / "g", "samples", "wnid") == ["n01440764", "n01443537"]


def test_imagenet_without_pictures_has_a_thousand_definitions_with_wnids_as_ids(tmp_path: Path) -> None:
    embed(tmp_path / "prompts", None, "imagenet")
    wnids = column(tmp_path / "prompts", "samples", "sample_id")
    names = [text.removeprefix("a photo of a ") for text in column(tmp_path / "prompts", "texts", "text")]
    nouns = write_nouns(tmp_path / "data.noun", {wnid: ("x 0 y 0", f"number {wnid[1:]}") for wnid in wnids})
    made = defined(tmp_path / "g", None, nouns, "imagenet")
    assert made == [f"{name}: number {wnid[1:]}" for name, wnid in zip(names, wnids, strict=True)]
    assert column(tmp_path / "g", "samples", "sample_id") == wnids


def test_the_file_and_its_digest_are_recorded_and_the_same_again_is_nothing_to_do(
    tmp_path: Path, nouns: Path, pictures: Path
) -> None:
    defined(tmp_path / "g", pictures, nouns)
    manifest = Manifest.load(tmp_path / "g")
    assert manifest.dataset["definitions"]["name"] == "data.noun"
    assert manifest.dataset["definitions"]["bytes"] == nouns.stat().st_size
    assert manifest.stages["text"].config["definitions"] == manifest.dataset["definitions"]["digest"]
    moved = shutil.copy(nouns, tmp_path / "copy.noun")
    assert embed(tmp_path / "g", pictures, "imagefolder", definitions=str(moved)).built == ()


def test_other_definitions_or_none_are_refused_without_overwrite(tmp_path: Path, nouns: Path, pictures: Path) -> None:
    defined(tmp_path / "g", pictures, nouns)
    with pytest.raises(OptionError, match=r"built with other options \(definitions: \w+ -> none, templates:"):
        embed(tmp_path / "g", pictures, "imagefolder")
    write_nouns(nouns, {**GLOSSES, TENCH: ("tench 0 t 0", "a green fish")})
    with pytest.raises(OptionError, match=r"built with other options \(definitions: \w+ -> \w+\)\. Add --overwrite"):
        defined(tmp_path / "g", pictures, nouns)
    assert "tench: a green fish" in defined(tmp_path / "g", pictures, nouns, overwrite=True)
    embed(tmp_path / "g", pictures, "imagefolder", overwrite=True)
    assert "definitions" not in Manifest.load(tmp_path / "g").dataset


def test_definitions_asked_of_a_graph_of_prompts_are_refused(tmp_path: Path, nouns: Path, pictures: Path) -> None:
    embed(tmp_path / "g", pictures, "imagefolder")
    with pytest.raises(OptionError, match=r"built with other options \(definitions: none -> \w+, templates:"):
        defined(tmp_path / "g", pictures, nouns)


def test_missing_file_is_one_line_that_says_what_to_give(tmp_path: Path, pictures: Path) -> None:
    arguments = ("--dataset", "imagefolder", "--source", pictures, "--graph-dir", tmp_path / "g", "--encoder", "hashing:16")
    answer = graphbuild("embed", *arguments, "--definitions", tmp_path)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path / 'data.noun'}: no such file. --definitions takes WordNet 3.0's data.noun" in answer.stderr


@pytest.mark.parametrize("shift", [-7, 2])
def test_file_of_another_version_is_refused(tmp_path: Path, pictures: Path, shift: int) -> None:
    other = write_nouns(tmp_path / "other", shift=shift)
    with pytest.raises(
        SourceError, match=r"other: no noun begins at byte 100, where n00000100 stands in WordNet 3\.0.*such as 3\.1"
    ):
        defined(tmp_path / "g", pictures, other)


@pytest.mark.parametrize("content", [b"", b"\xff\x00" * 500, b"00000100 00 v 01 swim 0 001 | move in water\n" * 9])
def test_file_that_is_no_noun_file_is_refused(tmp_path: Path, pictures: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(SourceError, match="other: no noun begins at byte 100"):
        defined(tmp_path / "g", pictures, tmp_path / "other")


@pytest.mark.parametrize("name", ["cats", "n123", "n000001000"])
def test_folder_that_is_no_wnid_is_named(tmp_path: Path, nouns: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"'{name}' is no wnid .* Leave --definitions out, or rename the folder"):
        defined(tmp_path / "g", write_folders(tmp_path / "pets", TENCH, name), nouns)


def test_data_set_without_wnids_refuses_definitions(tmp_path: Path, nouns: Path) -> None:
    with pytest.raises(OptionError, match=r"--definitions: data set 'cifar10' names no classes by wnid"):
        defined(tmp_path / "g", None, nouns, "cifar10")


def test_two_classes_of_one_text_are_named(tmp_path: Path) -> None:
    nouns = write_nouns(tmp_path / "data.noun", {TENCH: ("crane 0 a 0", "a bird"), GOLDFISH: ("crane 0 b 0", "a bird")})
    with pytest.raises(SourceError, match="two classes of one name: class n00000100 is 'crane: a bird'"):
        defined(tmp_path / "g", write_folders(tmp_path / "birds", TENCH, GOLDFISH), nouns)
