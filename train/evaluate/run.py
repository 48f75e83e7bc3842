"""`train eval`: a run's encoder and the same net untrained, scored by every protocol chosen; the scores stay beside the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from train.checkpoint import load_encoder
from train.data.base import ImageSource
from train.data.store import choose_load_size
from train.evaluate.cache import FOLDER, Extraction, features_of
from train.evaluate.case import Case
from train.evaluate.features import Features
from train.evaluate.few_shot import few_shot_scores
from train.evaluate.low_data import low_data_scores
from train.evaluate.options import ON_LABELS, EvalOptions, ProtocolName
from train.evaluate.retrieval import retrieval_scores
from train.evaluate.scores import describe, knn_scores, linear_scores
from train.evaluate.severity import severity_scores
from train.evaluate.sides import Sides
from train.loop import settle
from train.model import has_fast_bfloat16
from train.runs import read_run_config
from train.trainer import build_model

EVAL_FILE = "eval.json"
TRAINED, UNTRAINED = "trained", "untrained"
_HIDDEN = ("classes", "n_train", "n_test", "unlabelled", "unseen", "linear_l2")
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
    data: str
    """Images that were classified."""
    train_data: str
    """Images that were learned from."""
    images: int
    train_images: int
    corrupt_images: int
    """Left out, on both sides."""
    scores: Scores

    def summary(self) -> str:
        """A table for people: shares in percent."""
        lines = [
            f"{self.run_dir}: {self.objective}; {self.train_images:,} images of {self.train_data} to learn from, "
            f"{self.images:,} of {self.data} to classify"
            + (f"; {self.corrupt_images:,} that cannot be read left out" if self.corrupt_images else "")
        ]
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
        run_dir: The run's folder.
        options: Images, labels and protocols.

    Raises:
        OptionError: If the folder is not that of a run, or images or labels have to be named.
        ArtifactError: If the run is not finished, or damaged.
        SourceError: If images or label columns are missing.
    """
    result = _Evaluation(run_dir, options or EvalOptions()).run()
    _write(run_dir / EVAL_FILE, json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
    return result


class _Evaluation:
    """One call: the encoders, and the features that they were asked for."""

    def __init__(self, run_dir: Path, options: EvalOptions) -> None:
        self.path, self.options = run_dir, options
        self.config = settle(replace(read_run_config(run_dir), device=options.device))
        self.device = torch.device(self.config.device)
        self.encoders = {TRAINED: load_encoder(run_dir)}
        if options.untrained:
            self.encoders[UNTRAINED] = build_model(self.config, torch.device("cpu"))
        self.scores: Scores = {name: {} for name in self.encoders}

    def run(self) -> EvalResult:
        """Everything asked for."""
        chosen = self.options.chosen()
        sides = Sides(self.config, self.options)
        learned, asked = self.features(sides.learned, "features to learn from"), self.features(sides.asked, "features to classify")
        for number, name in enumerate(self.encoders):
            for column in sides.columns:
                case = sides.case(column, learned, asked, number, self.device)
                self.scores[name][column] = describe(case)
                for protocol in ON_LABELS:
                    if protocol in chosen:
                        self.scores[name][column] |= _BY_COLUMN[protocol](case)
        return EvalResult(
            run_dir=self.path,
            objective=self.config.objective,
            protocols=chosen,
            data=sides.asked.name,
            train_data=sides.learned.name,
            images=len(asked.rows),
            train_images=len(learned.rows),
            corrupt_images=len(sides.learned) + len(sides.asked) - len(learned.rows) - len(asked.rows),
            scores=self.scores,
        )

    def features(self, source: ImageSource, label: str) -> Features:
        """Features of a source by every encoder."""
        return features_of(list(self.encoders.values()), source, self._extraction(source), label=label)

    def _extraction(self, source: ImageSource) -> Extraction:
        config = self.config
        return Extraction(
            folder=self.path / FOLDER if self.options.cache else None,
            device=self.device,
            load_size=config.load_size or choose_load_size(source, config.image_size),
            # The run's arithmetic, but not where it would be a hundred times slower than float32.
            bfloat16=config.precision == "bfloat16" and has_fast_bfloat16(self.device),
            workers=config.workers,
            max_corrupt=config.max_corrupt,
        )


def _write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
