"""Cases for the protocols' tests: noisy points around one centre a class, and small pictures in a published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from train.evaluate.protocols.task import Labelled, Task


def blobs(count: int, *, classes: int = 4, width: int = 12, spread: float = 0.8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy points around one centre a class; the centres do not depend on the seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def make_task(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, **more: Any) -> Task:
    """A task without superclasses."""
    names = tuple(f"class {code}" for code in range(int(max(labels.max(), truth.max() if len(truth) else 0)) + 1))
    return Task(Labelled(train, labels), Labelled(test, truth), names, **more)


COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def paint(path: Path, colour: str, *, seed: int = 0, border: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 10, (16 + 2 * border, 16 + 2 * border, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    if border:
        pixels[:border], pixels[-border:], pixels[:, :border], pixels[:, -border:] = [(255, 0, 0)] * 4
    Image.fromarray(pixels).save(path)


def write_challenge(root: Path) -> Path:
    for variant in ("original", "mixed_same", "mixed_rand"):
        for folder, colour in (("00_dog", "green"), ("08_fish", "red")):
            for seed in range(2):
                paint(root / variant / "val" / folder / f"{seed}.png", colour, seed=seed)
    # As published: a folder of masks, which are no pictures.
    (root / "fg_mask/val/00_dog").mkdir(parents=True)
    (root / "fg_mask/val/00_dog/0.npy").write_bytes(b"mask")
    (root / "in_to_in9.json").write_text(json.dumps({"207": 0, "208": 0, "0": 8}))
    return root
