"""The device that a name stands for, or one line that says why there is none."""

from __future__ import annotations

import torch

from graphbuild.errors import OptionError


def choose_device(name: str | torch.device, *, option: str = "device") -> torch.device:
    """Return the device of a name; `auto` is CUDA where there is a GPU.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:INDEX`, or a device.
        option: What the message calls it.

    Raises:
        OptionError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"{option} {name!r} is no device. Use auto, cpu, cuda or cuda:INDEX.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"{option} {name}: this machine has {torch.cuda.device_count()} CUDA devices. Use {option} auto or cpu.")
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"{option} {str(name)!r} is not supported. Use auto, cpu, cuda or cuda:INDEX.")
    return device
