"""`train eval`: a run's encoder and the same net untrained, scored by every protocol chosen; the scores stay beside the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graphbuild.store import schemas
from train.config import TrainConfig
from train.data.base import ImageSource
from train.data.store import choose_load_size
from train.evaluate.cache import FOLDER, Extraction, features_of
from train.evaluate.encoders import SUFFIX, read_encoder
from train.evaluate.features import Features
from train.evaluate.options import ON_IMAGENET, ON_LABELS, EvalOptions, ProtocolName
from train.evaluate.protocols.case import Case
from train.evaluate.protocols.few_shot import few_shot_scores
from train.evaluate.protocols.imagenet import Answer, Found, ImageSet, imagenet_answer
from train.evaluate.protocols.imagenet9 import ImageNet9
from train.evaluate.protocols.imagenet_real import ImageNetReal
from train.evaluate.protocols.low_data import low_data_scores
from train.evaluate.protocols.mit_states import MitStates
from train.evaluate.protocols.objectnet import ObjectNet
from train.evaluate.protocols.retrieval import retrieval_scores
from train.evaluate.protocols.scores import describe, knn_scores, linear_scores
from train.evaluate.protocols.severity import severity_scores
from train.evaluate.protocols.zero_shot import read_templates, zero_shot_scores
from train.evaluate.sides import Sides
from train.model.encoders import Encoder, has_fast_bfloat16
from train.model.text_tower import TextTower, Tokenizer
from train.run.checkpoint import TEXT_TOWER, load_text_tower
from train.run.folder import read_run_config
from train.run.loop import settle
from train.run.trainer import build_model

EVAL_FILE = "eval.json"
TRAINED, UNTRAINED = "trained", "untrained"
_HIDDEN = ("classes", "n_train", "n_test", "unlabelled", "unseen", "linear_l2", "images")
"""Scores that the table for people leaves out."""
_COUNTED = ("severity", "severity_all", "severity_chance", "held_out_classes")
"""Scores that are no shares."""

Scores = dict[str, dict[str, dict[str, float]]]
"""By encoder, then by label column or data set, then by measure."""

_BY_COLUMN: Mapping[ProtocolName, Callable[[Case], dict[str, float]]] = {
    "knn": knn_scores,
    "linear": linear_scores,
    "low-data": low_data_scores,
    "retrieval": retrieval_scores,
    "few-shot": few_shot_scores,
    "severity": severity_scores,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """The scores of a run; `eval.json` in its folder holds the same."""

    run_dir: Path
    objective: str
    protocols: tuple[str, ...]
    data: str | None
    """Images that were classified; None where only a protocol ran that brings its own."""
    train_data: str | None
    """Images that were learned from; the same."""
    images: int
    train_images: int
    corrupt_images: int
    """Left out, on both sides."""
    scores: Scores

    def summary(self) -> str:
        """A table for people: shares in percent."""
        learned = f"; {self.train_images:,} images of {self.train_data} to learn from, {self.images:,} of {self.data} to classify"
        left_out = f"; {self.corrupt_images:,} that cannot be read left out" if self.corrupt_images else ""
        lines = [f"{self.run_dir}: {self.objective}{learned if self.data else ''}{left_out}"]
        columns = list(next(iter(self.scores.values())))
        wide = max(map(len, ("scores of", *columns))) + 2
        lines.append(f"{'scores of':<{wide}}{'measure':<26}" + "".join(f"{name:>20}" for name in self.scores))
        for column in columns:
            measures = dict.fromkeys(name for by_column in self.scores.values() for name in by_column[column])
            for name in measures:
                if name not in _HIDDEN and not name.endswith("_ci95"):
                    cells = "".join(f"{_shown(by_column[column], name):>20}" for by_column in self.scores.values())
                    lines.append(f"{column:<{wide}}{name:<26}{cells}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {**asdict(self), "run_dir": str(self.run_dir), "protocols": list(self.protocols)}


def _shown(scores: Mapping[str, float], name: str) -> str:
    value, half = scores.get(name), scores.get(f"{name}_ci95")
    if value is None:
        return "–"
    if name in _COUNTED:
        return f"{value:.2f}"
    return f"{value:.1%}" if half is None else f"{value:.1%} ± {100 * half:.1f}"


def evaluate_run(run_dir: Path, options: EvalOptions | None = None) -> EvalResult:
    """Score the frozen features of a finished run, and write `eval.json`.

    Args:
        run_dir: The run's folder, or an encoder's `.safetensors` alone; the scores of `name.safetensors` go to
            `name.eval.json`, and images have to be named.
        options: Images, labels and protocols.

    Raises:
        OptionError: If the folder is not that of a run, or images or labels have to be named.
        ArtifactError: If the run is not finished, or damaged.
        SourceError: If images or label columns are missing.
    """
    result = _Evaluation(run_dir, options or EvalOptions()).run()
    _write(_beside(run_dir, EVAL_FILE), json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
    return result


class _Evaluation:
    """One call: the encoders, and the features that they were asked for."""

    def __init__(self, run_dir: Path, options: EvalOptions) -> None:
        self.path, self.options = run_dir, options
        config = None if _is_file(run_dir) else read_run_config(run_dir)
        encoder = read_encoder(run_dir)
        self.config = settle(replace(config or _config_of(encoder), device=options.device))
        self.objective = config.objective if config else "not recorded"
        self.device = torch.device(self.config.device)
        self.encoders = {TRAINED: encoder}
        if options.untrained:
            self.encoders[UNTRAINED] = build_model(self.config, torch.device("cpu"))
        self.scores: Scores = {name: {} for name in self.encoders}
        self.corrupt = 0
        """Images that could not be read."""
        self._extracted: dict[int, Features] = {}
        self._text_side: tuple[TextTower, Tokenizer, tuple[str, ...]] | None = None

    def run(self) -> EvalResult:
        """Everything asked for."""
        chosen = self.options.chosen()
        self._text_side = self._open_text_side(chosen)
        sides = Sides(self.config, self.options) if set(chosen) & {*ON_LABELS, *ON_IMAGENET} else None
        # Opened before anything is computed: a wrong path is told at once.
        sets = self._image_sets(chosen, sides)
        learned = self.features(sides.learned, "features to learn from") if sides else None
        asked = self.features(sides.asked, "features to classify") if sides else None
        answers: list[Answer] = [_no_answer for _ in self.encoders]
        if sides and learned and asked:
            answers = [self._score_columns(number, sides, learned, asked, chosen) for number in range(len(self.encoders))]
        for images in sets:
            self._score_set(images, answers)
        return EvalResult(
            run_dir=self.path,
            objective=self.objective,
            protocols=chosen,
            data=sides.asked.name if sides else None,
            train_data=sides.learned.name if sides else None,
            images=len(asked.rows) if asked else 0,
            train_images=len(learned.rows) if learned else 0,
            corrupt_images=self.corrupt,
            scores=self.scores,
        )

    def _open_text_side(self, chosen: Sequence[ProtocolName]) -> tuple[TextTower, Tokenizer, tuple[str, ...]] | None:
        """Text tower, tokenizer and prompts, where zero-shot is named, or not ruled out and the run is CLIP's."""
        has_tower = not _is_file(self.path) and (self.path / TEXT_TOWER).exists()
        if "zero-shot" not in chosen or not (has_tower or "zero-shot" in self.options.protocols):
            return None
        tower = load_text_tower(self.path).to(self.device)
        tokenizer = Tokenizer(Path(self.config.graph_dir or "") / schemas.TOKENIZER, tower.shape["length"])
        return tower, tokenizer, read_templates(self.options.templates)

    def _score_columns(
        self, number: int, sides: Sides, learned: Features, asked: Features, chosen: Sequence[ProtocolName]
    ) -> Answer:
        """Scores of one encoder on every label column; its answers by ImageNet's classes, where these are asked for."""
        scores = self.scores[list(self.encoders)[number]]
        answer: Answer = _no_answer
        wanted = [name for name in ON_LABELS if name in chosen]
        for column in sides.columns:
            case = sides.case(column, learned, asked, number, self.device)
            if answer is _no_answer and set(ON_IMAGENET) & set(chosen):
                answer = imagenet_answer(case)
            if wanted:
                scores[column] = describe(case)
            for protocol in wanted:
                if protocol in _BY_COLUMN:
                    scores[column] |= _BY_COLUMN[protocol](case)
            if self._text_side is not None and not number:
                scores[column] |= zero_shot_scores(case, self.encoders[TRAINED], *self._text_side)
        return answer

    def _image_sets(self, chosen: Sequence[ProtocolName], sides: Sides | None) -> list[ImageSet]:
        options = self.options
        sets: list[ImageSet] = []
        if "imagenet-real" in chosen and options.real_labels and sides:
            sets.append(ImageNetReal(sides.asked, Path(options.real_labels)))
        if "imagenet-9" in chosen and options.imagenet9:
            sets.append(ImageNet9(Path(options.imagenet9), Path(options.in9_map) if options.in9_map else None))
        if "objectnet" in chosen and options.objectnet:
            sets.append(ObjectNet(Path(options.objectnet)))
        if "mit-states" in chosen and options.mit_states:
            sets.append(MitStates(Path(options.mit_states)))
        return sets

    def _score_set(self, images: ImageSet, answers: Sequence[Answer]) -> None:
        features = {name: self.features(source, f"features of {name}") for name, source in images.sources.items()}
        for number, encoder in enumerate(self.encoders):
            found = {name: Found(side.rows, side.by_encoder[number].to(self.device)) for name, side in features.items()}
            self.scores[encoder] |= images.scores(found, answers[number])

    def features(self, source: ImageSource, label: str) -> Features:
        """Features of a source by every encoder; asked for again, the same."""
        if id(source) not in self._extracted:
            found = features_of(list(self.encoders.values()), source, self._extraction(source), label=label)
            self.corrupt += len(source) - len(found.rows)
            self._extracted[id(source)] = found
        return self._extracted[id(source)]

    def _extraction(self, source: ImageSource) -> Extraction:
        config = self.config
        return Extraction(
            folder=_beside(self.path, FOLDER) if self.options.cache else None,
            device=self.device,
            load_size=config.load_size or choose_load_size(source, config.image_size),
            # The run's arithmetic, but not where it would be a hundred times slower than float32.
            bfloat16=config.precision == "bfloat16" and has_fast_bfloat16(self.device),
            workers=config.workers,
            max_corrupt=config.max_corrupt,
        )


def _is_file(run_dir: Path) -> bool:
    return run_dir.suffix == SUFFIX


def _beside(run_dir: Path, name: str) -> Path:
    """Where something of a run is kept: in its folder, or beside the file that stands for it."""
    return run_dir.with_name(f"{run_dir.stem}.{name}") if _is_file(run_dir) else run_dir / name


def _config_of(encoder: Encoder) -> TrainConfig:
    """What an encoder says of itself; it records neither images nor objective."""
    return TrainConfig(
        model=encoder.name,
        image_size=encoder.image_size,
        projector_hidden=encoder.projector_hidden,
        projector_dim=encoder.projector_dim,
    )


def _no_answer(features: Tensor) -> Tensor:
    raise AssertionError("a protocol that needs ImageNet's classes ran without images to learn them from")


def _write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
