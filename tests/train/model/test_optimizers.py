"""LARS by its formula, the two rules of SimCLR, weights to start from, and the dense teacher in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers_train import tiny_config, write_images, write_tiny_graph
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from graphbuild.errors import ArtifactError, OptionError, ResourceError
from train.config import TrainConfig
from train.model.encoders import Encoder
from train.model.optimizers import build_optimizer, peak_lr
from train.model.pretrained import load_backbone
from train.model.weights import save_weights
from train.run.loop import settle, train
from train.run.metrics import read_metrics


def settled(**changes: Any) -> TrainConfig:
    return settle(tiny_config(**changes))


@pytest.mark.parametrize(
    ("scaling", "batch", "lr", "expected"),
    [("none", 4096, 0.3, 0.3), ("linear", 4096, 0.3, 4.8), ("sqrt", 4096, 0.075, 4.8), ("sqrt", 1024, 0.075, 2.4)],
)
def test_learning_rate_rules_are_those_of_simclr(scaling: str, batch: int, lr: float, expected: float) -> None:
    assert peak_lr(settled(lr_scaling=scaling, batch_size=batch, lr=lr)) == pytest.approx(expected)


def test_scaling_without_a_learning_rate_is_refused() -> None:
    with pytest.raises(OptionError, match="--lr-scaling sqrt scales a learning rate that is named: add --lr"):
        TrainConfig(lr_scaling="sqrt")


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_lars_step_equals_its_formula(weight_decay: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    gradient, bias_gradient = torch.randn(4, 6), torch.randn(4)
    layer.weight.grad, layer.bias.grad = gradient.clone(), bias_gradient.clone()
    config = settled(optimizer="lars", lr=0.3, weight_decay=weight_decay, momentum=0.9)
    build_optimizer(config, layer, torch.device("cpu")).step()
    # You et al. (arXiv 1708.03888): a local rate of 0.001 |w| / (|g| + decay |w|); none for biases.
    local = 0.001 * weight.norm() / (gradient.norm() + weight_decay * weight.norm())
    torch.testing.assert_close(layer.weight.detach(), weight - 0.3 * local * (gradient + weight_decay * weight))
    torch.testing.assert_close(layer.bias.detach(), bias - 0.3 * bias_gradient)


@pytest.fixture(scope="module")
def pretrained() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return models.resnet18(weights=None).state_dict()


def resnet(size: int = 96, name: str = "resnet18") -> Encoder:
    return Encoder(name, image_size=size, projector_hidden=8, projector_dim=4)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_file_give_the_features_of_torchvision(
    pretrained: dict[str, torch.Tensor], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"weights.{suffix}"
    torch.save(pretrained, path) if suffix == "pth" else save_file(pretrained, path)
    encoder = resnet().eval()
    load_backbone(encoder, f"torchvision:{path}")
    whole = models.resnet18(weights=None)
    whole.load_state_dict(pretrained)
    whole.fc = nn.Identity()
    views = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.features(views), whole.eval()(views))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_file_of_timm_gives_the_features_of_timm(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(name, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    encoder = resnet(name=name).eval()
    load_backbone(encoder, f"timm:{tmp_path}/weights.safetensors")
    views = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.features(views), whole.forward_head(whole.forward_features(views), pre_logits=True))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_image_tower_of_an_openclip_checkpoint_is_taken_from_it(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(4)
    trunk = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    weights = {f"{prefix}visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    others = {f"{prefix}logit_scale": torch.ones(()), f"{prefix}visual.head.proj.weight": torch.ones(4, 512)}
    torch.save({"epoch": 3, "state_dict": {**weights, **others}}, tmp_path / "epoch_3.pt")
    encoder = resnet().eval()
    load_backbone(encoder, f"open_clip:{tmp_path}/epoch_3.pt")
    views = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.features(views), trunk(views))


def test_timm_hub_that_cannot_be_reached_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ResourceError, match=r"resnet18\.a1_in1k cannot be downloaded \(no route.*give its path: timm:PATH"):
        load_backbone(resnet(), "timm:a1_in1k")


def test_backbone_of_another_run_is_taken_and_its_projector_is_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (Encoder("small", image_size=32, projector_hidden=16, projector_dim=8) for _ in range(2))
    save_weights(tmp_path / "model.safetensors", first.state_dict())
    before = second.projector.state_dict()
    load_backbone(second, f"run:{tmp_path}/model.safetensors")
    views = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(second.eval().features(views), first.eval().features(views))
    torch.testing.assert_close(second.projector.state_dict(), before)
    TrainConfig(init=f"run:{tmp_path}/model.safetensors")
    with pytest.raises(ArtifactError, match=r"not the weights of a resnet18"):
        load_backbone(resnet(), f"run:{tmp_path}/model.safetensors")


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("run:runs/simclr", OptionError, r"run:PATH of a file"),
        ("resnet", OptionError, "is none of torchvision:NAME, timm:NAME"),
        ("open_clip:RN50", OptionError, "open_clip:PATH, run:PATH of a file"),
        ("timm:", OptionError, "is none of"),
        ("timm:a9_in1k", OptionError, "timm has no weights 'a9_in1k' for resnet18. It has .*resnet18.a1_in1k"),
        ("timm:none.safetensors", OptionError, "none.safetensors is missing"),
        ("open_clip:{folder}/other.pth", ArtifactError, "holds no image tower of timm"),
        ("torchvision:IMAGENET9", OptionError, "torchvision has no weights 'IMAGENET9' for resnet18. It has IMAGENET1K_V1"),
        ("torchvision:none.pth", OptionError, "none.pth is missing"),
        ("torchvision:{folder}/damaged.pth", ArtifactError, "is not a readable state dict"),
        ("torchvision:{folder}/list.pth", ArtifactError, "does not hold a state dict"),
        ("torchvision:{folder}/other.pth", ArtifactError, r"not the weights of a resnet18 \(.* tensors differ: .*Check --model"),
    ],
)
def test_wrong_init_is_one_error(tmp_path: Path, init: str, error: type[Exception], message: str) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"PK damaged")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(error, match=message):
        load_backbone(resnet(), init.format(folder=tmp_path))


def test_hub_that_cannot_be_reached_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(ResourceError, match=r"cannot be downloaded \(.*no route.*Download it elsewhere, and give its path"):
        load_backbone(resnet(), "torchvision:IMAGENET1K_V1")


def test_small_views_have_a_stem_that_no_weights_fit(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Use an --image-size over 64"):
        load_backbone(resnet(64), "torchvision:IMAGENET1K_V1")
    with pytest.raises(OptionError, match="--init is for ResNets"):
        TrainConfig(init="torchvision:IMAGENET1K_V1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_images(folder / "images.parquet", 24)
    write_tiny_graph(folder / "graph", 24)
    return folder


@pytest.mark.parametrize("changes", [{"optimizer": "lars"}, {"teacher": "embeddings"}, {"teacher": "embeddings", "loss_tile": 3}])
def test_options_train(place: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny_config(graph_dir=str(place / "graph"), data=str(place / "images.parquet"), steps=2, **changes)
    train(config, tmp_path / "run")
    graph = train(tiny_config(graph_dir=config.graph_dir, data=config.data, steps=2), tmp_path / "graph").last
    last = read_metrics(tmp_path / "run")[-1]
    if "teacher" in changes:
        # The dense target knows nothing of edges, and is what the assembled one is close to.
        assert last["hit_rate"] is None
        assert last["target_entropy"] == pytest.approx(graph["target_entropy"], abs=0.2)
        assert last["target_entropy"] != graph["target_entropy"]


def test_teacher_is_for_xclr_alone() -> None:
    with pytest.raises(OptionError, match="--teacher embeddings is for --objective xclr, not simclr"):
        TrainConfig(teacher="embeddings", objective="simclr")
