"""The model card of an exported backbone, in Markdown: what it is, how to load it, and from what it was made, by digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from graphbuild.system.backbones import MEAN, SMALL_IMAGE, STD
from graphbuild.system.cards import cell, front_matter, last_name, license_fields, table
from train.config import TrainConfig
from train.run.scores import KNN_TOP1, LINEAR_TOP1

INTRODUCTION = "An image encoder without a head."
"""How a card begins, by which it is known."""


def model_card(
    config: TrainConfig,
    *,
    weights: str,
    facts: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Any],
    stated_license: str | None = None,
) -> str:
    """Return the text of a model card, with the YAML that the Hugging Face hub reads.

    Args:
        config: Of the run, as `public_config` gives it.
        weights: File name of the state dict.
        facts: Tables by heading: rows of name and value; what is None is left out.
        scores: By label column, what eval.json holds of the trained encoder; empty if the run was not evaluated.
        stated_license: Of the weights, as the user states it.
    """
    header = {
        **license_fields(stated_license),
        "library_name": "timm" if config.model.startswith("resnet") else None,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["contrastive-learning", "x-clr", config.objective],
    }
    parts = [
        f"# {config.model}, trained with {_OBJECTIVES.get(config.objective, config.objective)}",
        f"{INTRODUCTION} Input: RGB, {config.image_size} x {config.image_size}, in [0, 1], less the mean {MEAN}, "
        f"over the deviation {STD}. Evaluated on the largest centred square, resized with antialiasing.",
        f"## Load it\n\n```python\n{loading_code(config, weights)}```",
    ]
    for heading, rows in facts.items():
        parts.append(f"## {heading}\n\n{table((name, value) for name, value in rows.items() if value is not None)}")
    if scores:
        lines = [f"| {cell(column)} | {row[KNN_TOP1]:.1%} | {row[LINEAR_TOP1]:.1%} |" for column, row in scores.items()]
        heading = "## Scores on held-out images\n\n| label | kNN top-1 | linear probe top-1 |\n|---|---:|---:|\n"
        parts.append(heading + "\n".join(lines))
    parts.append(f"## Configuration\n\n```toml\n{config.to_toml()}```")
    return front_matter(header) + "\n" + "\n\n".join(parts) + "\n"


def public_config(config: TrainConfig) -> TrainConfig:
    """Return a run's configuration with last names in the place of this machine's folders."""
    return replace(
        config,
        graph_dir=last_name(config.graph_dir),
        data=last_name(config.data),
        val_ids=last_name(config.val_ids),
        more_graphs=tuple(Path(path).name for path in config.more_graphs),
        head=tuple(str(replace(head, graph_dir=Path(head.graph_dir).name)) for head in config.heads),
        init=last_name(config.init),
    )


_OBJECTIVES = {
    "xclr": "X-CLR (arXiv 2407.18134)",
    "simclr": "SimCLR",
    "supcon": "SupCon",
    "clip": "CLIP",
    "vicreg": "VICReg (arXiv 2105.04906)",
    "barlow": "Barlow Twins (arXiv 2103.03230)",
    "simsiam": "SimSiam (arXiv 2011.10566)",
    "lejepa": "LeJEPA (arXiv 2511.08544)",
    "rank": "Rank-N-Contrast (arXiv 2210.01189) by the order of captions",
}


def loading_code(config: TrainConfig, weights: str) -> str:
    """Return Python that loads the weights; a test runs it."""
    if not config.model.startswith("resnet"):
        return (
            "from safetensors.torch import load_file\nfrom graphbuild.system.backbones import build_backbone\n\n"
            f"model, _ = build_backbone({config.model!r}, {config.image_size})\n"
            f"model.load_state_dict(load_file({weights!r}), strict=True)\n"
        )
    stem = (
        "# Views of up to 64 pixels: a stem that does not shrink them.\n"
        "model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)\n"
        "model.maxpool = nn.Identity()\n"
        if config.image_size <= SMALL_IMAGE
        else ""
    )
    return (
        "from safetensors.torch import load_file\nfrom torch import nn\nfrom torchvision.models import "
        f"{config.model}\n\nmodel = {config.model}()\nmodel.fc = nn.Identity()\n{stem}"
        f"model.load_state_dict(load_file({weights!r}), strict=True)\n\n"
        f'# timm takes the same file: timm.create_model("{config.model}", num_classes=0)'
        + (", with the same stem.\n" if stem else ".\n")
    )
