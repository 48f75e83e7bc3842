"""Image networks that both packages build, and files of weights as they read them. Loading this loads torch.

Shape letters: n views, S their height and width, F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.errors import ArtifactError, OptionError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels; every view is normalised by them."""
SMALL_IMAGE = 64
"""Views up to this size get a ResNet stem that does not shrink them (3 x 3, stride 1, no pooling), as SimCLR has for CIFAR."""
WEIGHT_FILES = (".pth", ".pt", ".safetensors")
"""How files of weights end."""
_PREFIX = "backbone."
"""Of a run's file, before the names of its backbone."""
_SMALL_WIDTHS = (32, 64, 128, 256)


class SmallNet(nn.Sequential):
    """Four 3 x 3 convolutions with BatchNorm and ReLU, 32 to 256 channels, halving thrice, then the mean over places."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(_SMALL_WIDTHS):
            layers += [
                nn.Conv2d(before, width, 3, stride=2 if index else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build_backbone(name: str, image_size: int) -> tuple[nn.Module, int]:
    """Return a backbone without its classifier, and the width of its features.

    Args:
        name: `small`, or a ResNet of torchvision.
        image_size: S.
    """
    if name == "small":
        net = SmallNet()
        _initialise(net)
        return net, _SMALL_WIDTHS[-1]
    from torchvision import models

    resnet: Any = getattr(models, name)(weights=None, zero_init_residual=True)
    width = int(resnet.fc.in_features)
    resnet.fc = nn.Identity()
    if image_size <= SMALL_IMAGE:
        resnet.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    return resnet, width


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's tensors, by its own names, of those of a run's file, which holds a projector, too."""
    return {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def read_state_dict(path: Path, option: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name; nothing but tensors is loaded.

    Args:
        path: One of `WEIGHT_FILES`.
        option: What named it, for messages.

    Raises:
        OptionError: If it is missing.
        ArtifactError: If it is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise OptionError(f"{option}: {path} is missing. Give the path of a state dict ({', '.join(WEIGHT_FILES)}).") from None
    except Exception as error:
        # Pickle, zip and safetensors each raise their own.
        raise ArtifactError(f"{option}: {path} is not a readable state dict ({error}). Save one with torch.save.") from error
    # OpenCLIP saves the epoch and the optimizer beside.
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ArtifactError(f"{option}: {path} does not hold a state dict, tensors by name. Save `model.state_dict()`.")
    return found
