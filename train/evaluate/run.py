"""`train eval`: a run's encoder and the same net untrained, scored on labelled images; the scores stay in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError
from graphbuild.graph import Graph
from train.checkpoint import load_encoder
from train.config import TrainConfig
from train.data import open_images, recorded_images
from train.data.base import ImageSource
from train.data.prepare import absolute, is_parquet
from train.data.store import CorruptImages, ImageStore
from train.evaluate.features import Features, extract_features
from train.evaluate.scores import evaluate_features
from train.loop import settle
from train.model import Encoder, has_fast_bfloat16
from train.runs import read_run_config
from train.trainer import build_model

EVAL_FILE = "eval.json"
TRAINED, UNTRAINED = "trained", "untrained"
_CIFAR = ("cifar10", "cifar100")

Scores = dict[str, dict[str, dict[str, float]]]
"""By encoder, then by label column; what `evaluate_features` gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult:
    """The scores of a run; `eval.json` in its folder holds the same."""

    run_dir: Path
    objective: str
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
        """A table for people: top-1 in percent."""
        lines = [
            f"{self.run_dir}: {self.objective}; {self.train_images:,} images of {self.train_data} to learn from, "
            f"{self.images:,} of {self.data} to classify"
            + (f"; {self.corrupt_images:,} that cannot be read left out" if self.corrupt_images else ""),
            f"{'label':<16}{'encoder':<12}{'kNN top-1':>10}{'linear top-1':>14}",
        ]
        for column in next(iter(self.scores.values())):
            for name, by_column in self.scores.items():
                row = by_column[column]
                lines.append(f"{column:<16}{name:<12}{row['knn_top1']:>10.1%}{row['linear_top1']:>14.1%}")
            chance = next(iter(self.scores.values()))[column]["chance"]
            lines.append(f"{column:<16}{'chance':<12}{chance:>10.1%}{chance:>14.1%}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {**asdict(self), "run_dir": str(self.run_dir)}


def evaluate_run(
    run_dir: Path,
    *,
    data: str | None = None,
    train_data: str | None = None,
    label_columns: Sequence[str] | None = None,
    device: str = "auto",
    untrained: bool = True,
) -> EvalResult:
    """Score the frozen features of a finished run by kNN and a linear probe, and write `eval.json`.

    Args:
        run_dir: The run's folder.
        data: Images to classify; None: the validation images that the run's graph records, or CIFAR's test split.
        train_data: Images to learn from; None: those of the run.
        label_columns: Columns of the classes, one set of scores each; None: the run's or the data set's, else `label`.
        device: auto, cpu, cuda or cuda:INDEX.
        untrained: Score the same net with its initial weights, too.

    Raises:
        OptionError: If the folder is not that of a run, or images or labels have to be named.
        ArtifactError: If the run is not finished, or damaged.
        SourceError: If images or label columns are missing.
    """
    config = settle(replace(read_run_config(run_dir), device=device))
    encoders = {TRAINED: load_encoder(run_dir)}
    if untrained:
        encoders[UNTRAINED] = build_model(config, torch.device("cpu"))
    train_source, test_source = _train_source(config, train_data), _test_source(config, data)
    columns = list(label_columns) if label_columns else [_default_column(config, train_source)]
    labels = {column: _shared_labels(column, train_source, test_source) for column in columns}
    learned, corrupt = _features(encoders, train_source, config, "features to learn from")
    asked, more_corrupt = _features(encoders, test_source, config, "features to classify")
    result = EvalResult(
        run_dir=run_dir,
        objective=config.objective,
        data=test_source.name,
        train_data=train_source.name,
        images=len(asked.rows),
        train_images=len(learned.rows),
        corrupt_images=corrupt + more_corrupt,
        scores=_score(list(encoders), learned, asked, labels, torch.device(config.device)),
    )
    _write(run_dir / EVAL_FILE, json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n")
    return result


def _features(encoders: Mapping[str, Encoder], source: ImageSource, config: TrainConfig, label: str) -> tuple[Features, int]:
    """Features of a source by every encoder, and how many images cannot be read."""
    device = torch.device(config.device)
    corrupt = CorruptImages(source.name, config.max_corrupt)
    # Each image is asked for once, so that holding them all would only take memory.
    store = ImageStore(source, size=config.load_size, corrupt=corrupt, workers=config.workers, cache_bytes=0)
    try:
        # The run's arithmetic, but not where it would be a hundred times slower than float32.
        half = config.precision == "bfloat16" and has_fast_bfloat16(device)
        return extract_features(list(encoders.values()), store, device=device, bfloat16=half, label=label), len(corrupt)
    finally:
        store.close()


def _score(
    names: Sequence[str], learned: Features, asked: Features, labels: Mapping[str, tuple[Tensor, Tensor]], device: torch.device
) -> Scores:
    scores: Scores = {}
    for number, name in enumerate(names):
        train, test = learned.by_encoder[number].to(device), asked.by_encoder[number].to(device)
        scores[name] = {
            column: evaluate_features(train, known[learned.rows].to(device), test, truth[asked.rows].to(device))
            for column, (known, truth) in labels.items()
        }
    return scores


def _dataset(config: TrainConfig) -> Mapping[str, Any]:
    """What the run's graph records of its data set; nothing where the run has no graph."""
    return Graph.open(config.graph_dir).manifest.dataset if config.graph_dir else {}


def _train_source(config: TrainConfig, given: str | None) -> ImageSource:
    data = given or config.data
    if data is None:
        raise OptionError("the run does not record its images. Name images to learn from with --train-data.")
    return open_images(absolute(data), image_column=_image_column(config, data))


def _test_source(config: TrainConfig, given: str | None) -> ImageSource:
    own = config.data or ""
    if given is None and own.partition(":")[0] in _CIFAR:
        given = own
    if given is not None:
        return open_images(absolute(given), image_column=_image_column(config, given), validation=True)
    recorded = recorded_images(_dataset(config), Path(config.graph_dir), validation=True) if config.graph_dir else None
    if recorded is None:
        raise OptionError(f"no validation images are recorded for {own or 'this run'}. Name images to classify with --data.")
    # Ids are not needed here, and the validation files may lack their column.
    return open_images(**{name: value for name, value in recorded.items() if name != "id_column"})


def _image_column(config: TrainConfig, data: str) -> str | None:
    return config.image_column if is_parquet(data) else None


def _default_column(config: TrainConfig, source: ImageSource) -> str:
    exist = source.label_columns()
    if config.label_column in exist:
        return str(config.label_column)
    for column in ((_dataset(config).get("images") or {}).get("label_column"), "label"):
        if column in exist:
            return str(column)
    raise OptionError(
        f"{source.name}: which column holds the classes? Name it with --label-column: {', '.join(exist) or 'none exist'}."
    )


def _shared_labels(column: str, train: ImageSource, test: ImageSource) -> tuple[Tensor, Tensor]:
    """Classes of both sides, numbered alike by their names; -1 where an image has none."""
    known, asked = train.labels(column), test.labels(column)
    numbers = {name: code for code, name in enumerate(known.names)}
    for name in asked.names:
        numbers.setdefault(name, len(numbers))
    # One more entry, for the code -1 of an image without a label picks the last.
    renumber = np.array([*(numbers[name] for name in asked.names), -1], np.int64)
    return torch.from_numpy(known.codes), torch.from_numpy(renumber[asked.codes])


def _write(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
