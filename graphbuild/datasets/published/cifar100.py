"""CIFAR-100, read by torchvision: class prompts and the ids of its pictures."""

from __future__ import annotations

from graphbuild.datasets.published.cifar import CifarSource

SOURCE = CifarSource("cifar100", classes=100)
