"""Weights that a backbone starts from: torchvision's and timm's, by name or from a file, an OpenCLIP checkpoint's, a run's.

timm's ResNets are torchvision's tensor for tensor. Of OpenCLIP's image towers those fit that are a ResNet of timm; the ResNets of
CLIP itself have another stem and attention in place of the mean, and do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from graphbuild.errors import ArtifactError, OptionError, ResourceError
from graphbuild.system.backbones import SMALL_IMAGE, WEIGHT_FILES, backbone_of, read_state_dict
from train.model.encoders import Encoder

LIBRARIES = ("torchvision", "timm", "open_clip", "run")
"""What `--init` begins with, and a colon."""
_NAMED = ("torchvision", "timm")
"""Those that have weights by name."""
_TRUNK = "visual.trunk."
"""Of an OpenCLIP checkpoint, before the names of a timm network."""
_SHOWN = 3


def absolute_init(init: str | None) -> str | None:
    """Return `--init` with an absolute path, so that a run's configuration holds anywhere."""
    library, _, source = (init or "").partition(":")
    return f"{library}:{Path(source).absolute()}" if library in LIBRARIES and source.endswith(WEIGHT_FILES) else init


def load_backbone(encoder: Encoder, init: str) -> None:
    """Put pretrained weights into a backbone; the classifier is left out, and the projector stays as it is.

    Args:
        encoder: With a ResNet for a backbone, unless the weights are a run's.
        init: `LIBRARY:NAME` or `LIBRARY:PATH`; of open_clip, and of a run, a path.

    Raises:
        OptionError: If there are no such weights, or the backbone has another stem.
        ArtifactError: If the file does not hold weights of this backbone.
        ResourceError: If they have to be downloaded, and cannot be.
    """
    library, _, source = init.partition(":")
    if library not in LIBRARIES or not source or (library not in _NAMED and not source.endswith(WEIGHT_FILES)):
        raise OptionError(
            f"--init {init!r} is none of torchvision:NAME, timm:NAME, and torchvision:PATH, timm:PATH, open_clip:PATH, run:PATH of "
            f"a file ({', '.join(WEIGHT_FILES)}), such as torchvision:IMAGENET1K_V2 or timm:a1_in1k."
        )
    if encoder.image_size <= SMALL_IMAGE and library != "run":
        raise OptionError(
            f"--init: views of {encoder.image_size} px get a first layer of their own, which no published weights fit. "
            f"Use an --image-size over {SMALL_IMAGE}."
        )
    if source.endswith(WEIGHT_FILES):
        weights = read_state_dict(Path(source), "--init")
    else:
        weights = (_fetch_timm if library == "timm" else _fetch)(encoder.name, source)
    if library == "open_clip":
        weights = _trunk(weights, source)
    if library == "run":
        weights = backbone_of(weights)
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
            f"--init: {weights.url} cannot be downloaded ({error}). Download it elsewhere, and give its path: torchvision:PATH."
        ) from error
    return fetched


def _fetch_timm(model: str, name: str) -> dict[str, Tensor]:
    import timm

    full = name if name.startswith(f"{model}.") else f"{model}.{name}"
    known = timm.list_pretrained(f"{model}.*")
    if full not in known:
        raise OptionError(f"--init: timm has no weights {name!r} for {model}. It has {', '.join(known)}.")
    try:
        fetched: dict[str, Tensor] = timm.create_model(full, pretrained=True).state_dict()
    except Exception as error:
        # The hub's client raises errors of its own, of its HTTP library and of the system.
        raise ResourceError(
            f"--init: {full} cannot be downloaded ({error}). Download it elsewhere, and give its path: timm:PATH."
        ) from error
    return fetched


def _trunk(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The image tower of an OpenCLIP checkpoint under the names of its network; `module.` stands before them after many GPUs."""
    names = {name: name.removeprefix("module.") for name in weights}
    found = {own.removeprefix(_TRUNK): weights[name] for name, own in names.items() if own.startswith(_TRUNK)}
    if not found:
        raise ArtifactError(
            f"--init: {source} holds no image tower of timm (no tensor is called {_TRUNK}...). Take a checkpoint whose tower is a "
            "ResNet of timm, for others are other networks."
        )
    return found
