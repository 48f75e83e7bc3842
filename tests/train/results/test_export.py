"""Exported backbones in the libraries that they are for, the card, and features against a forward pass of their own."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from helpers_hub import serve_hub
from helpers_train import draw, encode, tiny_config, write_images, write_tar_shards, write_tiny_graph
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision import models
from torchvision.transforms.v2 import functional as F

from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.system.backbones import MEAN, STD
from graphbuild.system.cards import Repository
from train.model.encoders import Encoder
from train.results.export import export_run
from train.results.model_card import loading_code, public_config
from train.run.checkpoint import CONFIG_FILE, load_encoder, save_encoder
from train.run.loop import train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    data, graph = write_images(folder / "images.parquet", 24, broken=(5,)), write_tiny_graph(folder / "graph", 24)
    train(tiny_config(data=str(data), graph_dir=str(graph), steps=2), folder / "run")
    return folder / "run"


def resnet_run(folder: Path, image_size: int) -> Path:
    """The folder of a finished run, without the time to train a ResNet."""
    config = tiny_config(objective="simclr", model="resnet18", image_size=image_size, data="images")
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(config.to_toml())
    save_encoder(folder / "model.safetensors", Encoder("resnet18", image_size=image_size, projector_hidden=16, projector_dim=8))
    return folder


@pytest.mark.parametrize("image_size", [32, 224])
def test_torchvision_and_timm_load_the_file_strictly_and_say_the_same(tmp_path: Path, image_size: int) -> None:
    run = resnet_run(tmp_path / "run", image_size)
    exported = export_run(run, tmp_path / "out")
    nets: list[Any] = [models.resnet18(), timm.create_model("resnet18", num_classes=0)]
    nets[0].fc = nn.Identity()
    views = torch.randn(2, 3, image_size, image_size)
    for net in nets:
        if image_size <= 64:
            net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        net.load_state_dict(load_file(exported.weights), strict=True)
        assert torch.allclose(net.eval()(views), load_encoder(run).features(views), atol=1e-5)
    assert exported.sha256 == hashlib.sha256(exported.weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(("model", "image_size"), [("small", 16), ("resnet18", 32), ("resnet18", 224)])
def test_code_of_the_card_loads_the_weights(tmp_path: Path, run_dir: Path, model: str, image_size: int) -> None:
    run = run_dir if model == "small" else resnet_run(tmp_path / "run", image_size)
    exported = export_run(run, tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", exported.card.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code.replace("backbone.safetensors", str(exported.weights)), names)
    expected = load_encoder(run).backbone.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in names["model"].state_dict().items())


def test_card_names_graph_encoder_and_data_by_digest(run_dir: Path, tmp_path: Path) -> None:
    from graphbuild.store.manifest import Manifest
    from train.data.prepare import prepare
    from train.run.folder import read_run_config

    card = export_run(run_dir, tmp_path / "out").card.read_text()
    config = read_run_config(run_dir)
    data = prepare(config)
    assert data.graph is not None
    encoder = Manifest.load(data.graph.path).encoder
    assert f"| digest of samples and graph | {data.fingerprint()} |" in card
    assert f"| directory | {data.graph.path.name} |" in card
    assert all(str(value) in card for value in (encoder.get("sha256"), encoder.get("dim")) if value is not None)
    assert "X-CLR" in card
    assert public_config(config).to_toml() in card
    assert str(run_dir.parent) not in card
    data.close()


def test_upload_brings_weights_and_a_card_that_the_hub_reads(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import ModelCard

    with serve_hub(monkeypatch, tmp_path / "cache") as hub:
        exported = export_run(
            run_dir, tmp_path / "out", stated_license="My own", repository=Repository(name="user/net", kind="model", private=True)
        )
    assert hub.created[0]["name"] == "net"
    # Told in one way or the other, by the version of the library.
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert set(hub.uploaded) == {"README.md", "backbone.safetensors"}
    assert hub.uploaded["backbone.safetensors"] == exported.weights.read_bytes()
    read = ModelCard.load(exported.card).data.to_dict()
    assert (read["license"], read["license_name"]) == ("other", "my-own")
    assert read["pipeline_tag"] == "image-feature-extraction"


def test_upload_without_a_token_is_refused_before_anything_is_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(OptionError, match="there is no token"):
        export_run(run_dir, tmp_path / "out", repository=Repository(name="user/net", kind="model"))
    assert not (tmp_path / "out").exists()


def test_features_are_those_of_the_centre_view_with_their_ids(run_dir: Path, tmp_path: Path) -> None:
    result = export_run(run_dir, tmp_path / "out", features=tmp_path / "features.parquet")
    assert (result.images, result.corrupt_images) == (23, 1)
    table = pl.read_parquet(tmp_path / "features.parquet")
    assert table.schema == {"sample_id": pl.String, "feature": pl.Array(pl.Float32, 256)}
    assert table["sample_id"].to_list() == [f"img-{i}" for i in range(24) if i != 5]
    encoder = load_encoder(run_dir)
    views = torch.stack([F.to_tensor(F.resize(Image.fromarray(draw(i)), [8, 8])) for i in (0, 23)])
    views = F.normalize(views, list(MEAN), list(STD))
    with torch.inference_mode():
        expected = encoder.features(views).numpy()
    assert np.allclose(table["feature"].to_numpy()[[0, 22]], expected, atol=1e-4)


def test_features_of_other_images(run_dir: Path, tmp_path: Path) -> None:
    folder = write_tar_shards(tmp_path / "shards", 5, prefix="other")
    export_run(run_dir, tmp_path / "out", features=tmp_path / "f.parquet", data=str(folder))
    assert pl.read_parquet(tmp_path / "f.parquet")["sample_id"].to_list() == [f"other-{i}" for i in range(5)]
    (tmp_path / "photo").mkdir()
    (tmp_path / "photo" / "a.png").write_bytes(encode(draw(1)))
    assert export_run(run_dir, tmp_path / "out", features=tmp_path / "f.parquet", data=str(tmp_path / "photo")).images == 1


def test_what_cannot_be_exported_is_one_error(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give the file to write with --features, too"):
        export_run(run_dir, tmp_path / "out", data="x")
    with pytest.raises(OptionError, match="not the folder of a run"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(SourceError, match="nothing there"):
        export_run(run_dir, tmp_path / "out", features=tmp_path / "f.parquet", data=str(tmp_path / "none"))
    assert not (tmp_path / "f.parquet").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text(tiny_config(objective="simclr").to_toml())
    with pytest.raises(ArtifactError, match="the run is not finished"):
        export_run(tmp_path / "run", tmp_path / "out")


def test_card_without_its_graph_says_so(run_dir: Path, tmp_path: Path) -> None:
    graph = run_dir.parent / "graph"
    graph.rename(run_dir.parent / "moved")
    try:
        assert "was not there any more" in export_run(run_dir, tmp_path / "out").card.read_text()
    finally:
        (run_dir.parent / "moved").rename(graph)
    assert "strict=True" in loading_code(tiny_config(model="resnet50"), "w")


def test_a_readme_that_is_not_ours_is_not_replaced(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(OptionError, match=r"README\.md: exists, and is not a card"):
        export_run(run_dir, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    export_run(run_dir, tmp_path, overwrite=True)
    export_run(run_dir, tmp_path / "out")
    first = (tmp_path / "out/backbone.safetensors").read_bytes()
    export_run(run_dir, tmp_path / "out")
    assert (tmp_path / "out/backbone.safetensors").read_bytes() == first
