"""Everything unusual about captions is counted, with examples: in the manifest, by embed, and by inspect."""

from __future__ import annotations

from pathlib import Path

from helpers_embed import column, embed, graphbuild, numbered_captions, write_captions

from graphbuild.store.manifest import Manifest

CAPTIONS = [
    "a dog",
    "cafe\u0301",
    "a\u200bhidden space",
    "bell\x07",
    "a  tab\tand\nlines",
    "family \U0001f468\u200d\U0001f469",
    "word " * 201,
    None,
    " \n",
    "A DOG",
    "a dog",
    "cafe\u0301 again",
]


def build(tmp_path: Path) -> Manifest:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS}))
    return Manifest.load(tmp_path / "g")


def test_what_is_unusual_is_counted_with_its_place(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    names = ("null", "blank", "control", "recomposed", "long")
    assert [manifest.counts[f"{name}_captions"] for name in names] == [1, 1, 2, 2, 1]
    listed = manifest.stages["text"].facts["listed"]
    assert listed["control"] == ["a.parquet:2: 'a\\u200bhidden space'", "a.parquet:3: 'bell\\x07'"]
    assert [place.split(": ")[0] for place in listed["recomposed"]] == ["a.parquet:1", "a.parquet:11"]
    assert listed["null"] == ["a.parquet:7"]


def test_nothing_but_nfc_and_white_space_is_altered(tmp_path: Path) -> None:
    build(tmp_path)
    texts = column(tmp_path / "g", "texts", "text")
    assert texts[1:5] == ["caf\u00e9", "a\u200bhidden space", "bell\x07", "a tab and lines"]


def test_most_repeated_texts_and_what_collapsing_saves_are_recorded(tmp_path: Path) -> None:
    facts = build(tmp_path).stages["text"].facts
    assert facts["most_repeated"] == [{"text_id": 0, "captions": 3, "text": "a dog"}]
    assert facts["collapsed"] == {"captions": 2, "encoding_saved": 0.2, "pairs_saved": 0.36}


def test_most_repeated_texts_are_found_over_all_shards(tmp_path: Path) -> None:
    captions = numbered_captions(50)
    source = write_captions(tmp_path / "a.parquet", {"caption": captions + captions[20:] + captions[33:34] * 2 + captions[48:49]})
    embed(tmp_path / "g", source, shard_size=7)
    found = Manifest.load(tmp_path / "g").stages["text"].facts["most_repeated"]
    assert [(one["text_id"], one["captions"], one["text"]) for one in found[:3]] == [
        (33, 4, captions[33]),
        (48, 3, captions[48]),
        (20, 2, captions[20]),
    ]
    assert len(found) == 10


def test_appending_goes_on_counting(tmp_path: Path) -> None:
    build(tmp_path)
    embed(tmp_path / "g", write_captions(tmp_path / "b.parquet", {"caption": ["x\x07", "a dog", None]}), append=True)
    manifest = Manifest.load(tmp_path / "g")
    assert (manifest.counts["control_captions"], manifest.counts["null_captions"]) == (3, 2)
    assert manifest.stages["text"].facts["listed"]["control"][-1] == "b.parquet:0: 'x\\x07'"
    assert manifest.stages["text"].facts["most_repeated"][0]["captions"] == 4


def test_embed_says_it_in_short_and_inspect_with_examples(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": CAPTIONS})
    options = [
        "--dataset",
        "parquet",
        "--source",
        source,
        "--encoder",
        "hashing:16",
        "--workers",
        "0",
        "--graph-dir",
        tmp_path / "g",
    ]
    said = graphbuild("embed", *options).stdout
    assert "2 captions with control or invisible characters, kept as they are" in said
    assert "2 captions repeat a text: 20.0% fewer to encode, 36.0% fewer pairs; most repeated, 3 times: 'a dog'" in said
    shown = graphbuild("inspect", "--graph-dir", tmp_path / "g").stdout
    assert "a.parquet:3: 'bell\\x07'" in shown
    assert "captions that repeat most" in shown
