"""Weights that a backbone starts from: torchvision's, by name or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphbuild.errors import ArtifactError, OptionError, ResourceError
from train.model.encoders import SMALL_IMAGE, Encoder

PREFIX = "torchvision:"
_FILES = (".pth", ".pt", ".safetensors")
_SHOWN = 3


def absolute_init(init: str | None) -> str | None:
    """`--init` with an absolute path, so that a run's configuration holds anywhere."""
    if init is None or not init.startswith(PREFIX) or not init.endswith(_FILES):
        return init
    return f"{PREFIX}{Path(init.removeprefix(PREFIX)).absolute()}"


def load_backbone(encoder: Encoder, init: str) -> None:
    """Put pretrained weights into a ResNet; the classifier is left out, and the projector stays as it is.

    Args:
        encoder: With a ResNet for a backbone.
        init: `torchvision:NAME` or `torchvision:PATH`.

    Raises:
        OptionError: If there are no such weights, or the backbone has another stem.
        ArtifactError: If the file does not hold weights of this backbone.
        ResourceError: If they have to be downloaded, and cannot be.
    """
    if not init.startswith(PREFIX):
        raise OptionError(f"--init {init!r} is not {PREFIX}NAME or {PREFIX}PATH, such as {PREFIX}IMAGENET1K_V2.")
    if encoder.image_size <= SMALL_IMAGE:
        raise OptionError(
            f"--init: views of {encoder.image_size} px get a first layer of their own, which torchvision's weights do not fit. "
            f"Use an --image-size over {SMALL_IMAGE}."
        )
    source = init.removeprefix(PREFIX)
    weights = _read(Path(source)) if source.endswith(_FILES) else _fetch(encoder.name, source)
    kept = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    own = encoder.backbone.state_dict()
    shapes, wanted = ({name: value.shape for name, value in some.items()} for some in (kept, own))
    wrong = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if wrong:
        raise ArtifactError(
            f"--init {init}: not the weights of a {encoder.name} ({len(wrong)} tensors differ: {', '.join(wrong[:_SHOWN])}). "
            "Check --model."
        )
    encoder.backbone.load_state_dict(kept)


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict; nothing but tensors is loaded."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise OptionError(f"--init: {path} is missing. Give the path of a state dict ({', '.join(_FILES)}).") from None
    except Exception as error:
        # Pickle, zip and safetensors each raise their own.
        raise ArtifactError(f"--init: {path} is not a readable state dict ({error}). Save one with torch.save.") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ArtifactError(f"--init: {path} does not hold a state dict, tensors by name. Save `model.state_dict()`.")
    return found


def _fetch(model: str, name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    known = get_model_weights(model)
    if name not in known.__members__:
        raise OptionError(f"--init: torchvision has no weights {name!r} for {model}. It has {', '.join(known.__members__)}.")
    weights = known[name]
    try:
        fetched: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise ResourceError(
            f"--init: {weights.url} cannot be downloaded ({error}). Download it elsewhere, and give its path: {PREFIX}PATH."
        ) from error
    return fetched
