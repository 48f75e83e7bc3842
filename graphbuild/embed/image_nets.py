"""Networks of images, loaded by name from timm, OpenCLIP, or what `train` wrote: in evaluation mode, with their transforms.

Weights are tensors alone: nothing is unpickled that could run code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.errors import ArtifactError, OptionError, ResourceError, one_line
from graphbuild.store.atomic import read_json

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn


_RUN_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedNet:
    """A network in evaluation mode, on the CPU."""

    features: Callable[[Tensor], Tensor]
    """(B, 3, S, S) to (B, D)."""
    module: nn.Module
    transform: Callable[[Image.Image], Tensor]
    """An RGB picture to (3, S, S)."""
    size: int
    dim: int
    texts: Callable[[str], Tensor] | None = None
    """A text to (1, D), where the network has a text side."""
    sha256: str = ""
    transform_text: str = ""


def load_timm(name: str, rest: str) -> LoadedNet:
    """Load a network of timm without its classifier.

    Args:
        name: As the user gave it, for messages.
        rest: What follows `timm:`, a name, a folder, or a name and a file.

    Raises:
        OptionError: If there is no such network or folder.
        ResourceError: If its weights cannot be downloaded.
        ArtifactError: If a file is damaged, or holds another network.
    """
    import timm
    import torch
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model: Any
    named, _, file = rest.partition(":")
    if Path(rest).is_dir():
        model = _timm_of_folder(Path(rest))
    else:
        if named.partition(".")[0] not in timm.list_models():
            raise OptionError(
                f"--encoder {name}: timm has no network {named.partition('.')[0]!r}. `timm.list_models()` lists them."
            )
        try:
            model = timm.create_model(named, pretrained=not file, num_classes=0)
        # The hub raises errors of a dozen kinds, its own and the network's; timm says RuntimeError where it has no weights.
        except Exception as error:
            raise ResourceError(
                f"--encoder {name}: its weights cannot be had ({one_line(str(error))[:200]}). Download them elsewhere, and give "
                f"their path: timm:{named}:FILE."
            ) from None
        if file:
            _fill(model, Path(file), name)
    config = resolve_model_data_config(model)
    transform = create_transform(**config, is_training=False)
    module, shape = model.eval(), tuple(config["input_size"])
    with torch.inference_mode():
        dim = int(module(torch.zeros(1, *shape)).shape[-1])
    return LoadedNet(module, module, transform, int(shape[-1]), dim)


def _timm_of_folder(folder: Path) -> Any:
    """A folder as timm writes it for the hub: config.json and model.safetensors."""
    import timm

    try:
        held = read_json(folder / "config.json")
        own = {**held.get("pretrained_cfg", {}), "num_classes": held.get("num_classes", 1000)}
        arguments = dict(held.get("model_args") or {}, num_classes=0)
        model = timm.create_model(held["architecture"], pretrained=False, pretrained_cfg=own, **arguments)
    except FileNotFoundError:
        raise OptionError(f"--encoder timm:{folder}: no config.json here. Give a folder as timm saves it for the hub.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'}: not the configuration of a timm network ({one_line(str(error))[:200]})."
        ) from error
    _fill(model, folder / _RUN_WEIGHTS, f"timm:{folder}")
    return model


def _fill(model: Any, path: Path, name: str) -> None:
    """Put a file's tensors into a network without its classifier."""
    from graphbuild.system.backbones import read_state_dict

    weights = {key.removeprefix("module."): value for key, value in read_state_dict(path, "--encoder").items()}
    heads = model.default_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    own = model.state_dict()
    kept = {key: value for key, value in weights.items() if key in own or not key.startswith(tuple(f"{head}." for head in heads))}
    _require_shapes(name, {key: value.shape for key, value in own.items()}, {key: value.shape for key, value in kept.items()})
    model.load_state_dict(kept)


def _require_shapes(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if wrong:
        raise ArtifactError(
            f"--encoder {name}: the file does not hold the weights of this network ({len(wrong)} tensors differ: "
            f"{', '.join(wrong[:3])}). Check both names."
        )


def load_open_clip(name: str, rest: str) -> LoadedNet:
    """Load the image side of a network of OpenCLIP, with its text side as `texts`.

    Args:
        name: As the user gave it, for messages.
        rest: What follows `open_clip:`, a name and a tag or file, or a folder.

    Raises:
        OptionError: If OpenCLIP is not installed, has no such network, or its weights are not named.
        ResourceError: If it cannot be loaded.
    """
    try:
        import open_clip
    except ImportError:
        raise OptionError(f"--encoder {name}: open_clip is not installed. Run `uv pip install 'xclr-graph[open-clip]'`.") from None
    model_name, _, weights = rest.partition(":")
    if folder := Path(rest).is_dir():
        model_name, weights = f"local-dir:{rest}", ""
    elif model_name not in open_clip.list_models():
        raise OptionError(f"--encoder {name}: OpenCLIP has no network {model_name!r}. `open_clip.list_models()` lists them.")
    if not folder and not weights:
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise OptionError(
            f"--encoder {name}: name its weights, open_clip:{model_name}:TAG or :FILE. Tags: {', '.join(tags) or 'none'}."
        )
    model: Any
    try:
        model, transform = open_clip.create_model_from_pretrained(model_name, pretrained=weights or None)
        tokenizer = open_clip.get_tokenizer(model_name)
    # It raises what its configuration, the hub, the network and torch raise.
    except Exception as error:
        raise ResourceError(
            f"--encoder {name}: cannot be loaded ({type(error).__name__}: {one_line(str(error))[:200]}). Check the name, or "
            "download the weights elsewhere and give their path."
        ) from None
    model = model.eval()
    size = model.visual.image_size
    size = int(size[0] if isinstance(size, tuple | list) else size)
    return LoadedNet(
        model.encode_image,
        model,
        transform,
        size,
        int(model.visual.output_dim),
        lambda text: model.encode_text(tokenizer([text])),
    )


def load_own(path: Path) -> LoadedNet:
    """Load a backbone that `train run` or `train export` wrote, with the largest centred square as evaluation sees it.

    Raises:
        OptionError: If there is no such file.
        ArtifactError: If it holds something else.
    """
    from safetensors import SafetensorError, safe_open
    from torchvision import transforms

    from graphbuild.system.backbones import MEAN, STD, backbone_of, build_backbone

    path = path / _RUN_WEIGHTS if path.is_dir() else path
    try:
        with safe_open(path, "pt") as stored:
            facts = stored.metadata() or {}
            weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
        size = int(facts["image_size"])
        module, dim = build_backbone(facts["model"], size)
        module.load_state_dict(backbone_of(weights) or weights)
    except FileNotFoundError:
        raise OptionError(f"--encoder {path}: no such file: the run is not finished, or the path is another's.") from None
    except (SafetensorError, KeyError, ValueError, AttributeError, RuntimeError, OSError) as error:
        raise ArtifactError(
            f"--encoder {path}: not a network that `train` made ({one_line(str(error))[:200]}). Weights of timm's networks "
            "are named with the network: timm:NAME:FILE."
        ) from error
    how = transforms.Compose(
        [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    module = module.eval()
    return LoadedNet(module, module, how, size, dim)
