"""COCO, Flickr and lines of text in their publishers' formats: what is read, and what goes wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_embed import column, embed
from helpers_published import coco, listed, sample_texts

from graphbuild.errors import SourceError
from graphbuild.store.manifest import Manifest


def test_coco_captions_find_their_pictures_file_name(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 25, "id": 1, "caption": "A giraffe mother with its baby in the forest.\n"},
        {"image_id": 9, "id": 2, "caption": 'Closeup of bins of food, {[}]" included.'},
        {"image_id": 25, "id": 3, "caption": "Two giraffes standing in a tree filled area."},
    ]
    (tmp_path / "captions_train2017.json").write_text(coco(annotations))
    embed(tmp_path / "g", tmp_path / "captions_train2017.json", "coco", keep_columns=("image_id",))
    names = {9: "000000000009.jpg", 25: "000000000025.jpg"}
    expected = [(names[int(str(one["image_id"]))], " ".join(str(one["caption"]).split())) for one in annotations]
    assert sample_texts(tmp_path / "g") == expected
    assert column(tmp_path / "g", "samples", "image_id") == ["25", "9", "25"]
    assert Manifest.load(tmp_path / "g").counts["samples"] == 2


def test_coco_is_streamed_whatever_the_order_of_its_parts(tmp_path: Path) -> None:
    # Longer than what is read at a time.
    content = json.loads(coco([{"image_id": 9, "id": i, "caption": f"caption {i} " + i * "of "} for i in range(400)]))
    turned = {name: content[name] for name in ("annotations", "info", "images", "licenses")}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(turned, indent=1))
    embed(tmp_path / "g", tmp_path / "captions_val2017.json", "coco")
    assert column(tmp_path / "g", "texts", "text") == [f"caption {i} {i * 'of '}".strip() for i in range(400)]


def test_invalid_utf8_in_coco_is_named_by_its_row(tmp_path: Path) -> None:
    text = coco([{"image_id": 9, "id": 1, "caption": "fine"}, {"image_id": 9, "id": 2, "caption": "bad ## one"}])
    (tmp_path / "captions.json").write_bytes(text.encode().replace(b"##", b"\xff\xfe"))
    embed(tmp_path / "g", tmp_path / "captions.json", "coco")
    assert column(tmp_path / "g", "texts", "text") == ["fine", "bad \ufffd\ufffd one"]
    assert listed(tmp_path / "g") == {"invalid_utf8": ["captions.json:1"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (coco([{"image_id": 1, "id": 1, "caption": "x"}]), "annotation 0 is of picture 1, which is not among its images"),
        (coco([{"image_id": 9, "id": 1, "caption": "x"}])[:-9], "ends too early"),
        ('{"images": [], "info": {}}', "it has no list 'annotations'"),
        ("[1, 2]", "it has no list 'annotations'"),
        ('{"annotations": [3]}', "'annotations' holds int, not objects"),
        ("", "ends too early"),
    ],
)
def test_broken_coco_is_one_clear_error(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(SourceError, match=words) as error:
        embed(tmp_path / "g", tmp_path / "captions.json", "coco")
    assert "captions.json" in str(error.value)


FLICKR = {
    "results_20130124.token": """1000092795.jpg#0\tTwo young guys , "laughing" .
1000092795.jpg#1\tTwo men .
36979.jpg#0\tA group | of people .
""",
    "captions.txt": """image,caption
1000092795.jpg,"Two young guys , ""laughing"" ."
1000092795.jpg,Two men .
36979.jpg,A group | of people .
""",
    # The row without its second bar is the publisher's.
    "results.csv": """image_name| comment_number| comment
1000092795.jpg| 0| Two young guys , "laughing" .
1000092795.jpg| 1   Two men .
36979.jpg| 0| A group | of people .
""",
}


@pytest.mark.parametrize("name", FLICKR)
def test_flickr_files_in_each_form_give_the_same_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FLICKR[name])
    embed(tmp_path / "g", tmp_path / name, "flickr")
    assert sample_texts(tmp_path / "g") == [
        ("1000092795.jpg", 'Two young guys , "laughing" .'),
        ("1000092795.jpg", "Two men ."),
        ("36979.jpg", "A group | of people ."),
    ]
    assert Manifest.load(tmp_path / "g").counts["samples"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [("1.jpg#0\tone\n2.jpg two\n", "line 2 is not <file>, number, caption"), ("photo;text\n1;x\n", "no Flickr captions: line 1")],
)
def test_broken_flickr_file_names_the_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "results.token").write_text(content)
    with pytest.raises(SourceError, match=words):
        embed(tmp_path / "g", tmp_path / "results.token", "flickr")


def test_lines_are_captions_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b'a\t"tab" and, commas\n\nNA\r\nbad \xff\nlast without an end')
    embed(tmp_path / "g", tmp_path / "a.txt", "lines")
    assert sample_texts(tmp_path / "g") == [
        ("a.txt:0", 'a "tab" and, commas'),
        ("a.txt:2", "NA"),
        ("a.txt:3", "bad \ufffd"),
        ("a.txt:4", "last without an end"),
    ]
    assert listed(tmp_path / "g") == {"blank": ["a.txt:1"], "invalid_utf8": ["a.txt:3"]}
