"""Image encoders by name: timm's, OpenCLIP's and those that `train` made; their weights, digests and transforms.

Names: `timm:NAME`, `timm:FOLDER`, `timm:NAME:FILE`, `open_clip:NAME:TAG`, `open_clip:NAME:FILE`, `open_clip:FOLDER`, and a run's
folder or `.safetensors`. Weights are tensors alone: nothing is unpickled that could run code. torch is loaded then.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.embed.image_nets import LoadedNet, load_open_clip, load_own, load_timm
from graphbuild.embed.libraries import quiet_libraries
from graphbuild.errors import ArtifactMismatch, OptionError, UserError, one_line

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "open_clip")
"""What a name begins with, and a colon; a path stands for a network that `train` made."""
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


def is_image_encoder(name: str) -> bool:
    """Return whether a name is one of an image encoder: of a library, or of a file or run of `train`."""
    return name.partition(":")[0] in LIBRARIES or name.endswith(".safetensors") or (Path(name) / "config.toml").is_file()


def find_image_encoder(name: str, precision: str) -> ImageSpec:
    """Load an image encoder, and describe it.

    Args:
        name: As in the module's docstring.
        precision: float32, bfloat16 or float16; auto is float32, because nothing says that half precision keeps these vectors.

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
    """Say what is wrong with an encoder on this machine, in words that follow the machine's name; None if it is that of `spec`."""
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
            net = load_timm(name, rest)
        elif library == "open_clip":
            net = load_open_clip(name, rest)
        else:
            net = load_own(Path(name))
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


def _digest(module: nn.Module) -> str:
    """sha256 of all tensors, by name: the same however the weights came here."""
    import torch

    hasher = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        hasher.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _describe(net: LoadedNet) -> str:
    """The transform in a line; what is a function of the library, by its name, because addresses would differ."""
    steps = getattr(net.transform, "transforms", [net.transform])
    return "; ".join(getattr(step, "__name__", one_line(str(step))) for step in steps)
