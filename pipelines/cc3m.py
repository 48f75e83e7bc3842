"""`python -m pipelines.cc3m --data FOLDER`: X-CLR on Conceptual Captions (CC3M), from captions to a trained encoder.

FOLDER holds webdataset shards as img2dataset writes them: 00000.tar, 00000.parquet, ... Captions and images are joined by
URL. Batches are chunks of neighbours; `--set batches=random` draws them at random.

ResNet-50, LARS and batches of 1,024 are the paper's (arXiv 2407.18134); the number of epochs is ours, for public sources
do not give it, and neither do they say by which rule the base learning rate of 0.075 is scaled with the batch: that is an
option, `--set lr_scaling=none|sqrt|linear`.
"""

from __future__ import annotations

from graphbuild.system.process import run_cli
from pipelines.conceptual import conceptual_recipe
from pipelines.recipe import command

RECIPE = conceptual_recipe("cc3m", "Conceptual Captions (CC3M)", epochs=100)

cc3m = command(RECIPE)

if __name__ == "__main__":
    run_cli(cc3m, debug_variable="TRAIN_DEBUG")
