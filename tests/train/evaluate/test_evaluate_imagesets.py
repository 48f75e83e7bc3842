"""ImageNet-Real, ImageNet-9, ObjectNet and MIT-States over a few pictures in their publishers' layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers_evaluate import COLOURS, blobs, make_task, paint, write_challenge
from torch import Tensor

from graphbuild.errors import SourceError
from train.config import TrainConfig
from train.evaluate.images import Images
from train.evaluate.options import EvalOptions
from train.evaluate.protocols.imagenet import Found, ImageNetSet, imagenet_answer
from train.evaluate.protocols.imagenet9 import ImageNet9
from train.evaluate.protocols.imagenet_real import ImageNetReal
from train.evaluate.protocols.mit_states import MitStates
from train.evaluate.protocols.objectnet import ObjectNet
from train.evaluate.run import evaluate_run
from train.run.loop import train

# ImageNet's own wnids and numbers of three classes.
CLASSES = {"red": ("n01440764", 0), "green": ("n02099601", 207), "blue": ("n04254680", 805)}


def found_in(images: ImageNetSet | MitStates, guesses: Mapping[str, list[int]]) -> dict[str, Found]:
    """Features that are the guesses themselves."""
    return {name: Found(np.arange(len(values)), torch.tensor(values)[:, None]) for name, values in guesses.items()}


def as_told(features: Tensor) -> Tensor:
    return features[:, 0]


class Named:
    """A source of ids alone."""

    def __init__(self, ids: list[str]) -> None:
        self.name, self.sample_ids = "val", ids

    def __len__(self) -> int:
        return len(self.sample_ids)


def named(ids: list[str]) -> Images:
    return Images(Named(ids))  # type: ignore[arg-type]


def test_real_takes_any_label_by_the_number_in_the_name_and_skips_images_without(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[[7], [3, 4], [], [9]]")
    ids = [f"n01440764/ILSVRC2012_val_{number:08}.JPEG" for number in (4, 2, 3, 1)]
    images = ImageNetReal(named(ids), tmp_path / "real.json")
    scores = images.scores(found_in(images, {"val": [9, 4, 0, 8]}), as_told)
    assert scores == {"imagenet-real": {"linear_top1": pytest.approx(2 / 3), "images": 3}}


def test_real_labels_as_published_are_read(shared_data: Path) -> None:
    path = shared_data / "classes/imagenet_real.json"
    stored = json.loads(path.read_text())
    ids = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 101)]
    images = ImageNetReal(named(ids), path)
    guesses = [labels[-1] if labels else 0 for labels in stored[:100]]
    scores = images.scores(found_in(images, {"val": guesses}), as_told)["imagenet-real"]
    assert (scores["linear_top1"], scores["images"]) == (1.0, sum(map(bool, stored[:100])))


@pytest.mark.parametrize(
    ("content", "ids", "message"),
    [
        ("{}", ["ILSVRC2012_val_00000001"], "not a list of lists"),
        ("[[1", ["ILSVRC2012_val_00000001"], "not JSON"),
        ("[[1]]", ["cat.jpg"], "'cat.jpg' do not tell which image"),
        ("[[1]]", ["ILSVRC2012_val_00000002"], "do not tell which image"),
    ],
)
def test_real_refuses_what_does_not_fit(tmp_path: Path, content: str, ids: list[str], message: str) -> None:
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(SourceError, match=message):
        ImageNetReal(named(ids), tmp_path / "real.json")


def test_background_gap_is_the_accuracy_lost_to_random_backgrounds(tmp_path: Path) -> None:
    images = ImageNet9(write_challenge(tmp_path))
    # Two dogs, then two fish. Another breed is right; a class outside the nine is wrong.
    guesses = {"original": [207, 208, 0, 0], "mixed_same": [208, 207, 0, 805], "mixed_rand": [0, 207, 805, -1]}
    scores = images.scores(found_in(images, guesses), as_told)["imagenet-9"]
    assert scores == {"original": 1.0, "mixed_same": 0.75, "mixed_rand": 0.25, "background_gap": 0.5}


def test_published_map_of_in9_agrees_with_the_class_table(shared_data: Path, tmp_path: Path) -> None:
    write_challenge(tmp_path)
    images = ImageNet9(tmp_path, shared_data / "classes/in_to_in9.json")
    # 151 is the first dog; 1 is a goldfish.
    guesses = {name: [151, 151, 1, 1] for name in images.sources}
    assert images.scores(found_in(images, guesses), as_told)["imagenet-9"]["original"] == 1.0


def test_challenge_without_a_variant_or_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"original/val: no such folder"):
        ImageNet9(tmp_path)
    write_challenge(tmp_path)
    (tmp_path / "in_to_in9.json").unlink()
    with pytest.raises(SourceError, match="--in9-map"):
        ImageNet9(tmp_path)


def write_objectnet(root: Path) -> Path:
    for folder, colour in (("bath_towel", "red"), ("banana", "blue"), ("weight_scale", "green")):
        paint(root / "images" / folder / "a.png", colour, border=2)
    mappings = root / "mappings"
    mappings.mkdir()
    labels = {"bath_towel": "Bath towel", "banana": "Banana", "weight_scale": "Weight scale"}
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    overlap = {"Bath towel": "bath towel; tench, Tinca tinca", "Banana": "sock"}
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(overlap))
    (mappings / "imagenet_to_label_2012_v2").write_text("sock\nbath towel\ntench, Tinca tinca\n")
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps({"0": 2, "434": 1, "805": 0}))
    return root


def test_objectnet_asks_about_shared_classes_and_takes_any_of_theirs(tmp_path: Path) -> None:
    images = ObjectNet(write_objectnet(tmp_path))
    # banana first, then the towel, which may be a tench; the scale is left out.
    assert images.scores(found_in(images, {"objectnet": [805, 0]}), as_told)["objectnet"] == {"linear_top1": 1.0, "images": 2}
    assert images.scores(found_in(images, {"objectnet": [804, 434]}), as_told)["objectnet"]["linear_top1"] == 0.5


def test_objectnets_border_is_cut_off(tmp_path: Path) -> None:
    source = ObjectNet(write_objectnet(tmp_path)).sources["objectnet"].source
    (pixels,) = source.encoded([0])
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (16, 16, 3)
    assert pixels[:, :, 0].max() < 100


def test_maps_of_different_versions_are_told(tmp_path: Path) -> None:
    write_objectnet(tmp_path)
    (tmp_path / "mappings/imagenet_to_label_2012_v2").write_text("sock\nbath towel\ntench\n")
    with pytest.raises(SourceError, match="'tench, Tinca tinca' is no line of imagenet_to_label_2012_v2"):
        ObjectNet(tmp_path)


def write_states(root: Path) -> Path:
    pairs = {"ripe apple": "red", "unripe apple": "green", "ripe pear": "red", "unripe pear": "green", "adj pear": "blue"}
    for folder, colour in pairs.items():
        for seed in range(10):
            paint(root / "images" / folder / f"{seed}.jpg", colour, seed=seed)
    return root


def test_states_are_split_by_image_or_by_the_published_pairs(tmp_path: Path) -> None:
    images = MitStates(write_states(tmp_path))
    assert len(images.sources["mit-states"].source) == 40
    colours = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    scores = images.scores({"mit-states": Found(np.arange(40), colours)})
    assert {name: found["n_test"] for name, found in scores.items()} == {"mit-states attribute": 20, "mit-states object": 20}
    (tmp_path / "compositional-split").mkdir()
    (tmp_path / "compositional-split/test_pairs.txt").write_text("ripe apple\n")
    split = MitStates(tmp_path).scores({"mit-states": Found(np.arange(40), colours)})
    assert split["mit-states object"]["n_test"] == 10


def test_no_question_is_about_an_attribute_or_object_that_was_never_learned(tmp_path: Path) -> None:
    write_states(tmp_path)
    (tmp_path / "compositional-split").mkdir()
    # Every picture of "ripe" is in the test set; its objects are in both.
    ripe = [path.name for path in (tmp_path / "images").iterdir() if path.name.startswith("ripe ")]
    (tmp_path / "compositional-split/test_pairs.txt").write_text("\n".join(ripe) + "\n")
    colours = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SourceError, match="0 to classify"):
        MitStates(tmp_path).scores({"mit-states": Found(np.arange(40), colours)})


def test_a_folder_that_names_no_pair_is_told(tmp_path: Path) -> None:
    paint(tmp_path / "images" / "apple" / "0.jpg", "red")
    with pytest.raises(SourceError, match="'apple' is not named by attribute and object"):
        MitStates(tmp_path)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps, and its images: three ImageNet classes that are told apart by their colour."""
    root = tmp_path_factory.mktemp("imagesets")
    rows = []
    for place in range(48):
        colour = list(COLOURS)[place % 3]
        paint(root / "one.png", colour, seed=place)
        wnid, content = CLASSES[colour][0], (root / "one.png").read_bytes()
        rows.append({"image": content, "wnid": wnid, "id": f"ILSVRC2012_val_{place + 1:08}.JPEG"})
    pq.write_table(pa.Table.from_pylist(rows), root / "images.parquet")
    config = TrainConfig(objective="simclr", image_size=16, batch_size=16, steps=2, device="cpu", precision="float32")
    train(replace(config, data=str(root / "images.parquet"), id_column="id"), root / "run")
    return root / "run", root / "images.parquet"


def test_one_command_scores_all_that_it_is_given(run_dir: tuple[Path, Path], tmp_path: Path) -> None:
    folder, data = run_dir
    options = EvalOptions(
        data=str(data),
        label_columns=("wnid",),
        allow_overlap=True,
        imagenet9=str(write_challenge(tmp_path / "in9")),
        objectnet=str(write_objectnet(tmp_path / "objectnet")),
        mit_states=str(write_states(tmp_path / "states")),
        untrained=False,
    )
    result = evaluate_run(folder, options)
    scores = result.scores["trained"]
    assert set(scores) == {"wnid", "imagenet-9", "objectnet", "mit-states attribute", "mit-states object"}
    # Colours are told apart by any net.
    assert scores["imagenet-9"] == {"original": 1.0, "mixed_same": 1.0, "mixed_rand": 1.0, "background_gap": 0.0}
    assert scores["objectnet"]["linear_top1"] == 1.0
    assert scores["mit-states attribute"]["linear_top1"] == 1.0
    assert all(name in result.summary() for name in ("background_gap", "mit-states object", "imagenet-9"))


def test_states_alone_need_no_other_images(run_dir: tuple[Path, Path], tmp_path: Path) -> None:
    options = EvalOptions(mit_states=str(write_states(tmp_path)), protocols=("mit-states",))
    result = evaluate_run(run_dir[0], options)
    assert result.data is None
    assert set(result.scores) == {"trained", "untrained"}


def test_answers_are_imagenets_numbers_by_wnid() -> None:
    codes = torch.arange(12) % 3
    features = torch.nn.functional.one_hot(codes).float()
    task = replace(make_task(features, codes, features, codes), names=tuple(wnid for wnid, _ in CLASSES.values()))
    assert imagenet_answer(task)(features)[:3].tolist() == [0, 207, 805]


def test_classes_that_are_not_imagenets_are_told() -> None:
    train, labels = blobs(20)
    with pytest.raises(SourceError, match="none of ImageNet's"):
        imagenet_answer(make_task(train, labels, train, labels))
