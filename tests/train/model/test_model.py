from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.model.encoders import Encoder, weight_groups
from train.run.checkpoint import load_encoder, save_encoder


@pytest.mark.parametrize(("name", "size", "features"), [("small", 32, 256), ("resnet18", 32, 512), ("resnet18", 96, 512)])
def test_encoder_gives_unit_vectors_and_features(name: str, size: int, features: int) -> None:
    encoder = Encoder(name, image_size=size, projector_hidden=32, projector_dim=16)  # type: ignore[arg-type]
    views = torch.randn(4, 3, size, size)
    projected = encoder(views)
    assert projected.shape == (4, 16)
    assert torch.allclose(projected.norm(dim=1), torch.ones(4), atol=1e-6)
    assert encoder.features(views).shape == (4, features) == (4, encoder.feature_dim)


def test_small_images_keep_their_size_through_the_stem_of_a_resnet() -> None:
    backbone = Encoder("resnet18", image_size=64, projector_hidden=8, projector_dim=4).backbone
    stem = backbone.maxpool(backbone.conv1(torch.zeros(1, 3, 64, 64)))  # type: ignore[operator]
    assert stem.shape == (1, 64, 64, 64)


def test_only_matrices_and_kernels_take_weight_decay() -> None:
    encoder = Encoder("small", image_size=32, projector_hidden=8, projector_dim=4)
    decayed, bare = weight_groups(encoder, 0.1)
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in bare["params"]} == {1}
    assert (decayed["weight_decay"], bare["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(bare["params"]) == len(list(encoder.parameters()))


def test_a_projector_with_batch_norm_comes_back_from_its_file(tmp_path: Path) -> None:
    encoder = Encoder("small", image_size=16, projector_hidden=8, projector_dim=4, projector_bn=True).eval()
    assert [type(layer).__name__ for layer in encoder.projector] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    save_encoder(tmp_path / "net.safetensors", encoder)
    views = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_encoder(tmp_path / "net.safetensors")(views), encoder(views))
