"""Image encoders by name: timm's, OpenCLIP's and those that `train` made; their weights, digests and transforms.

Names: `timm:NAME`, `timm:FOLDER`, `timm:NAME:FILE`, `open_clip:NAME:TAG`, `open_clip:NAME:FILE`, `open_clip:FOLDER`, and a run's
folder or `.safetensors`. Weights are tensors alone: nothing is unpickled that could run code. torch is loaded then.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.embed.encoder_files import quiet_libraries
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, ResourceError, UserError, one_line

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

LIBRARIES = ("timm", "open_clip")
"""What a name begins with, and a colon; a path stands for a network that `train` made."""
_RUN_WEIGHTS = "model.safetensors"
_BACKBONE = "backbone."
FORMS = "timm:NAME, timm:FOLDER, timm:NAME:FILE, open_clip:NAME:TAG, open_clip:NAME:FILE, open_clip:FOLDER, or the path of a run"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """One exact image encoder: enough to load it again in another process, and to tell it from every other."""

    name: str
    """With absolute paths."""
    sha256: str
    """Of its tensors, by name."""
    transform: str
    """What is done to a picture before, in words."""
    size: int
    """Height and width of the pictures that it takes."""
    dim: int
    precision: str = "float32"

    def identity(self) -> dict[str, Any]:
        """Return what its vectors depend on."""
        return {"encoder": self.name, "sha256": self.sha256, "transform": self.transform, "precision": self.precision}


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


def is_image_encoder(name: str) -> bool:
    """Return whether a name is one of an image encoder: of a library, or of a file or run of `train`."""
    return name.partition(":")[0] in LIBRARIES or name.endswith(".safetensors") or (Path(name) / "config.toml").is_file()


def find_image_encoder(name: str, precision: str) -> ImageSpec:
    """Load an image encoder, and describe it.

    Args:
        name: As in the module's docstring.
        precision: float32, bfloat16 or float16; auto is float32, for nothing says that half precision keeps these vectors.

    Raises:
        OptionError: If there is no such network, or a library is missing.
        ResourceError: If weights must be downloaded and cannot be.
        ArtifactError: If a file is damaged, or holds another network.
    """
    name = _absolute(name)
    net = _load(name, _stamp(name))
    kind = "float32" if precision == "auto" else precision
    return ImageSpec(name=name, sha256=net.sha256, transform=net.transform_text, size=net.size, dim=net.dim, precision=kind)


def load_net(spec: ImageSpec) -> LoadedNet:
    """Load the network of `spec`, whose tensors are compared with its digest.

    Raises:
        ArtifactMismatch: If they are others here.
        UserError: As `find_image_encoder`.
    """
    net = _load(spec.name, _stamp(spec.name))
    for what, found, wanted in (("weights", net.sha256, spec.sha256), ("transform", net.transform_text, spec.transform)):
        if found != wanted:
            raise ArtifactMismatch(
                f"{platform.node()} has another encoder {spec.name} ({what} {found[:60]}, not {wanted[:60]}). Install the same "
                "on both."
            )
    return net


def other_here(spec: ImageSpec) -> str | None:
    """What is wrong with an encoder on this machine, in words that follow the machine's name; None if it is that of `spec`."""
    try:
        load_net(spec)
    except UserError as error:
        return f"cannot load the encoder: {error}"
    return None


@lru_cache(maxsize=2)
def _load(name: str, stamp: tuple[int, ...]) -> LoadedNet:
    """Load a network; `stamp` changes where its file does."""
    import torch

    quiet_libraries()
    library, _, rest = name.partition(":")
    # Weights are drawn before they are replaced: the caller's generator is left as it was.
    with torch.random.fork_rng(devices=[]):
        if library == "timm":
            net = _load_timm(name, rest)
        elif library == "open_clip":
            net = _load_open_clip(name, rest)
        else:
            net = _load_own(Path(name))
    # Before anybody converts it to another precision.
    return replace(net, sha256=_digest(net.module), transform_text=_describe(net))


def _stamp(name: str) -> tuple[int, ...]:
    """Sizes and times of the files that a name's path stands for; nothing of a name without one."""
    library, _, rest = name.partition(":")
    path = Path((rest.partition(":")[2] or rest) if library in LIBRARIES else name)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return tuple(value for file in files for value in (file.stat().st_size, file.stat().st_mtime_ns))


def _absolute(name: str) -> str:
    """The name with absolute paths, so that workers find it from any folder."""
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        if not Path(name).exists():
            raise OptionError(f"--encoder {name}: neither a file or run here, nor a name of an image encoder: {FORMS}.")
        return str(Path(name).absolute())
    if not rest:
        raise OptionError(f"--encoder {name}: give {FORMS}.")
    model, _, given = rest.partition(":")
    if Path(rest).is_dir():
        return f"{library}:{Path(rest).absolute()}"
    if given and Path(given).is_file():
        return f"{library}:{model}:{Path(given).absolute()}"
    return name


def _load_timm(name: str, rest: str) -> LoadedNet:
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
        held = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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


def _load_open_clip(name: str, rest: str) -> LoadedNet:
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


def _load_own(path: Path) -> LoadedNet:
    """A backbone that `train run` or `train export` wrote, with the largest centred square as evaluation sees it."""
    from safetensors import SafetensorError, safe_open
    from torchvision import transforms

    from graphbuild.system.backbones import MEAN, STD, build_backbone

    path = path / _RUN_WEIGHTS if path.is_dir() else path
    try:
        with safe_open(path, "pt") as stored:
            facts = stored.metadata() or {}
            weights = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a mapping
        size = int(facts["image_size"])
        module, dim = build_backbone(facts["model"], size)
        own = {key.removeprefix(_BACKBONE): value for key, value in weights.items() if key.startswith(_BACKBONE)}
        module.load_state_dict(own or weights)
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


def _digest(module: nn.Module) -> str:
    """sha256 of all tensors, by name: the same however the weights came here."""
    import torch

    hasher = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        hasher.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _describe(net: LoadedNet) -> str:
    """The transform in a line; what is a function of the library, by its name, for addresses would differ."""
    steps = getattr(net.transform, "transforms", [net.transform])
    return "; ".join(getattr(step, "__name__", one_line(str(step))) for step in steps)
