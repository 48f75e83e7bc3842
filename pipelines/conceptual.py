"""What the recipes of CC3M and CC12M share: shards of img2dataset, the captions' graph, and the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graphbuild.errors import SourceError
from pipelines.recipe import Layout, Recipe


def find_layout(folder: Path) -> Layout:
    """Return the shards of a folder.

    Raises:
        SourceError: If there are none.
    """
    if not any(folder.glob("*.tar")):
        raise SourceError(f"{folder}: no shards (00000.tar, ...) here. --data takes the folder that img2dataset wrote.")
    return Layout(train=str(folder))


def conceptual_recipe(name: str, title: str, *, epochs: int) -> Recipe:
    """Return the recipe of one of them; only captions whose images were downloaded are embedded."""

    def embed_options(layout: Layout) -> dict[str, Any]:
        return {"dataset": name, "sources": (layout.train,)}

    return Recipe(
        name=name,
        about=f"X-CLR on {title}, from the captions of downloaded images to a trained encoder.",
        needs="Folder of webdataset shards as img2dataset writes them.",
        layout=find_layout,
        embed=embed_options,
        k=256,
        label="label",
        own_labels=False,
        train={
            "objective": "xclr",
            "model": "resnet50",
            "image_size": 224,
            "batch_size": 1024,
            "batches": "neighbors",
            "epochs": epochs,
            # SimCLR's settings for photographs (arXiv 2002.05709, appendix A).
            "augment": "simclr",
            "color_strength": 1.0,
            "crop_min": 0.08,
            "optimizer": "lars",
            "lr": 0.075,
            "lr_scaling": "sqrt",
            "weight_decay": 1e-6,
            "warmup_epochs": 5.0,
            "projector_hidden": 2048,
            "projector_dim": 128,
            "workers": 16,
            "max_corrupt": 10_000,
        },
    )
