"""`python -m pipelines.imagenet --data FOLDER`: X-CLR on ImageNet-1k as the paper trains it, from class prompts to scores.

FOLDER holds train/ and val/, each with a folder of pictures a wnid. The graph is that of the 1,000 class prompts, every
pair stored; pictures find their class by the folder that they lie in.

From the paper (arXiv 2407.18134): ResNet-50, LARS, batches of 1,024, 100 epochs, AutoAugment, a base learning rate of
0.075, tau = tau_s = 0.1. Public sources do not say by which rule the base rate is scaled with the batch, so that it is an
option: `--set lr_scaling=none|sqrt|linear`. The default is sqrt, 0.075 times the square root of the batch size, because that is
SimCLR's rule of this base rate (arXiv 2002.05709, appendix B.1). Weight decay, warm-up and projector are SimCLR's, too.

`--definitions PATH` departs from the paper: class texts are names with WordNet's definitions, and tau_s is 0.15, as in our study
(docs/study.md). Definitions lie further apart than prompts: at 0.1 most of the target would be on the own class.
"""

from __future__ import annotations

from typing import Any

from graphbuild.system.process import run_cli
from pipelines.recipe import Layout, Recipe, command, imagenet_layout


def embed_options(layout: Layout) -> dict[str, Any]:
    """Return the built-in classes, as "a photo of a {}" unless there are definitions."""
    return {"dataset": "imagenet", "workers": 0}


RECIPE = Recipe(
    name="imagenet",
    about="X-CLR on ImageNet-1k with the paper's recipe, from class prompts to a report.",
    needs="Folder with train/ and val/, each of wnid folders.",
    layout=imagenet_layout,
    embed=embed_options,
    k="all",
    label="label",
    own_labels=True,
    train={
        "objective": "xclr",
        "model": "resnet50",
        "image_size": 224,
        "batch_size": 1024,
        "epochs": 100,
        "augment": "autoaugment",
        "crop_min": 0.08,
        "optimizer": "lars",
        "lr": 0.075,
        "lr_scaling": "sqrt",
        "weight_decay": 1e-6,
        "warmup_epochs": 10.0,
        "projector_hidden": 2048,
        "projector_dim": 128,
        "workers": 16,
    },
    defined={"tau_s": 0.15},
)

imagenet = command(RECIPE)

if __name__ == "__main__":
    run_cli(imagenet, debug_variable="TRAIN_DEBUG")
