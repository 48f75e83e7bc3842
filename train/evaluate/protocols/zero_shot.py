"""Zero-shot classification by CLIP's text tower: the class whose prompts lie nearest to the image.

Radford et al. 2021 (arXiv 2103.00020, section 3.1): the prompts of a class are embedded one by one, averaged and normalised.

Shape letters: C classes, D width of the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from graphbuild.errors import OptionError
from graphbuild.store.atomic import read_json
from train.evaluate.protocols.task import Task, accuracy
from train.model.encoders import Encoder
from train.model.text_tower import TextTower, Tokenizer, encode_texts

TEMPLATES = ("a photo of a {}",)
_AT_ONCE = 1024


def zero_shot_scores(
    task: Task, encoder: Encoder, tower: TextTower, tokenizer: Tokenizer, templates: Sequence[str]
) -> dict[str, float]:
    """Return `zero_shot_top1` among the classes that are asked about, and `zero_shot_chance`.

    Args:
        task: Its names are what the prompts are made of.
        encoder: Whose projection lies beside the texts'.
        tower: The text tower that was trained with it.
        tokenizer: That of the run's graph.
        templates: Prompts, `{}` where the name goes.
    """
    codes = torch.unique(task.test.labels)
    names = [task.names[code].replace("_", " ") for code in codes.tolist()]
    prompts_CD = embed_classes(names, tower, tokenizer, templates).to(task.test.features.device)
    # The length of an image's vector changes no order of its classes.
    guess = codes[(project(encoder, task.test.features) @ prompts_CD.T).argmax(dim=1)]
    return {"zero_shot_top1": accuracy(guess, task.test.labels), "zero_shot_chance": 1 / len(codes)}


def project(encoder: Encoder, features: Tensor) -> Tensor:
    """Return projections of features, beside the texts' vectors, of any length; (n, F) -> (n, D) float32."""
    with torch.inference_mode():
        return torch.cat([encoder.projector(rows).float() for rows in torch.split(features, _AT_ONCE)])


def embed_classes(names: Sequence[str], tower: TextTower, tokenizer: Tokenizer, templates: Sequence[str]) -> Tensor:
    """Return unit vectors of classes, the mean over their prompts; (C, D)."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    parts = [encode_texts(tower, tokenizer, prompts[i : i + _AT_ONCE]) for i in range(0, len(prompts), _AT_ONCE)]
    vectors = torch.cat(parts).view(len(names), len(templates), -1)
    return functional.normalize(vectors.mean(dim=1), dim=1)


def read_templates(path: str | None) -> tuple[str, ...]:
    """Read prompts from a JSON list, as CLIP's are published; the usual one without a file.

    Raises:
        OptionError: If it is no such list, or a prompt has no place for the name.
    """
    if path is None:
        return TEMPLATES
    try:
        found = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: cannot be read ({error}). --templates takes a JSON list of prompts.") from None
    if not isinstance(found, list) or not found or not all(isinstance(item, str) and "{}" in item for item in found):
        raise OptionError(f"{path}: not a list of prompts with a {{}} in each. --templates takes a JSON list of them.")
    return tuple(found)
