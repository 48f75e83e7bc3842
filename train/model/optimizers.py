"""Optimisers, and the learning rate that they begin with."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import TrainConfig
from train.model.encoders import weight_groups

_DEFAULT_LR = {"sgd": 0.12, "lars": 0.3, "adamw": 1e-3}
_LINEAR_UNIT = 256

_VICREG_SGD = 0.005
"""VICReg's parts have weights of 25, and steps of sgd grow with them; 0.12 diverges."""


def default_lr(config: TrainConfig) -> float:
    """Return the learning rate of a configuration that names none."""
    return _VICREG_SGD if (config.optimizer, config.objective) == ("sgd", "vicreg") else _DEFAULT_LR[config.optimizer]


def peak_lr(config: TrainConfig) -> float:
    """Return the highest learning rate of a settled configuration.

    SimCLR (arXiv 2002.05709) states both rules: 0.3 times batch size / 256, and 0.075 times its square root.
    """
    assert config.lr is not None, "a settled configuration has a learning rate"
    if config.lr_scaling == "linear":
        return config.lr * config.batch_size / _LINEAR_UNIT
    return config.lr * math.sqrt(config.batch_size) if config.lr_scaling == "sqrt" else config.lr


def build_optimizer(config: TrainConfig, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of a settled configuration, in one kernel where the device has it.

    LARS (arXiv 1708.03888) adapts the steps of kernels and matrices, with weight decay or without, and leaves biases and
    normalisation alone, as SimCLR has it.
    """
    groups, lr = weight_groups(model, config.weight_decay), peak_lr(config)
    # On a CPU the fused kernels round otherwise, and gain nothing.
    fused = device.type == "cuda" or None
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=fused)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(config.momentum, 0.999), fused=fused)
    from timm.optim.lars import Lars

    adapted, plain = groups
    # By default timm's adapts only what has weight decay: without any it would be plain SGD.
    return Lars([{**adapted, "always_adapt": True}, plain], lr=lr, momentum=config.momentum)
