"""Image encoders and the projector: views in, unit vectors out.

Shape letters: n views, S their height and width, F feature width, D width of the projection.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.system.backbones import build_backbone
from train.config import ModelName


class Encoder(nn.Module):
    """A backbone, whose features are what is kept and evaluated, and a projector, which only the loss sees."""

    def __init__(
        self, name: ModelName, *, image_size: int, projector_hidden: int, projector_dim: int, projector_bn: bool = False
    ) -> None:
        """Build it with random weights from the global generator.

        Args:
            name: The backbone.
            image_size: S; decides the stem of a ResNet.
            projector_hidden: Width of the projector's hidden layer.
            projector_dim: D.
            projector_bn: Whether the projector ends in a BatchNorm, as SimCLR's does (arXiv 2002.05709).
        """
        super().__init__()
        self.name, self.image_size = name, image_size
        self.projector_hidden, self.projector_dim, self.projector_bn = projector_hidden, projector_dim, projector_bn
        self.backbone, self.feature_dim = build_backbone(name, image_size)
        self.projector = nn.Sequential(
            nn.Linear(self.feature_dim, projector_hidden, bias=False),
            nn.BatchNorm1d(projector_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(projector_hidden, projector_dim, bias=not projector_bn),
            *([nn.BatchNorm1d(projector_dim)] if projector_bn else []),
        )

    def forward(self, views: Tensor) -> Tensor:
        """Return unit vectors, float32 under autocast too; (n, 3, S, S) -> (n, D)."""
        return nn.functional.normalize(self.projections(views), dim=1)

    def projections(self, views: Tensor) -> Tensor:
        """Return what the projector gives, of any length; (n, 3, S, S) -> (n, D) float32."""
        projected: Tensor = self.projector(self.backbone(views))
        return projected.float()

    def features(self, views: Tensor) -> Tensor:
        """Return what the backbone says; (n, 3, S, S) -> (n, F) float32."""
        features: Tensor = self.backbone(views)
        return features.float()


def head_of(encoder: Encoder, *, own: bool) -> Encoder:
    """Return an encoder that takes features of the backbone in the place of images.

    Args:
        encoder: The encoder that is trained.
        own: Whether it has the encoder's own projector; else a copy of it, with weights of its own.
    """
    # What the copy finds in the memo is not copied.
    shared: dict[int, Any] = {id(encoder.backbone): nn.Identity()}
    return copy.deepcopy(encoder, shared | ({id(encoder.projector): encoder.projector} if own else {}))


def weight_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters for an optimizer: matrices and kernels with weight decay, biases and normalisation without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [item for item in parameters if item.ndim > 1], "weight_decay": weight_decay},
        {"params": [item for item in parameters if item.ndim <= 1], "weight_decay": 0.0},
    ]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware multiplies in bfloat16: where it does not, it is slower than float32, on AVX2 a hundred times."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Told by the hardware, not by a timing: a run that is resumed must compute as before.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def parameter_count(model: nn.Module) -> int:
    """Count the trainable numbers of a model."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters() if parameter.requires_grad)
