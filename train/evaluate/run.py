"""`train eval`: a run's encoder and the same net untrained, scored by every protocol chosen; the scores stay beside the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.atomic import remove_stale_temporaries
from graphbuild.store.graph import Graph
from graphbuild.system.answers import Answer, next_steps, quoted
from graphbuild.system.progress import progress, stages
from train.config import TrainConfig
from train.evaluate.cache import FOLDER, Extraction, features_of
from train.evaluate.data import EvalData
from train.evaluate.encoders import SUFFIX, read_encoder
from train.evaluate.features import Features
from train.evaluate.images import Images, RunImages
from train.evaluate.options import ON_IMAGENET, ON_LABELS, ON_TEXTS, EvalOptions, ProtocolName
from train.evaluate.protocols.few_shot import few_shot_scores
from train.evaluate.protocols.image_text import image_text_scores
from train.evaluate.protocols.imagenet import Found, ImageNetSet, imagenet_answer
from train.evaluate.protocols.imagenet9 import ImageNet9
from train.evaluate.protocols.imagenet_real import ImageNetReal
from train.evaluate.protocols.low_data import low_data_scores
from train.evaluate.protocols.mit_states import MitStates
from train.evaluate.protocols.objectnet import ObjectNet
from train.evaluate.protocols.retrieval import retrieval_scores
from train.evaluate.protocols.scores import describe, knn_scores, linear_scores
from train.evaluate.protocols.severity import severity_scores
from train.evaluate.protocols.task import Task
from train.evaluate.protocols.zero_shot import read_templates, zero_shot_scores
from train.model.encoders import Encoder, has_fast_bfloat16
from train.model.text_tower import TextTower, Tokenizer
from train.run.checkpoint import TEXT_TOWER, load_text_tower
from train.run.folder import EVAL_FILE, TRAINED, UNTRAINED, read_run_config
from train.run.loop import settle
from train.run.scores import IN_EDGES, write_scores
from train.run.trainer import build_model

_HIDDEN = ("classes", "n_train", "n_test", "unlabelled", "unseen", "linear_l2", "images", "texts")
"""Scores that the table for people leaves out."""
_COUNTED = (*IN_EDGES, "held_out_classes")
"""Scores that are no shares."""

TextSide = tuple[TextTower, Tokenizer, tuple[str, ...]]
"""Text tower, tokenizer and prompts of zero-shot."""
Scores = dict[str, dict[str, dict[str, float]]]
"""By encoder, then by label column or data set, then by measure."""

_BY_COLUMN: Mapping[ProtocolName, Callable[[Task], dict[str, float]]] = {
    "knn": knn_scores,
    "linear": linear_scores,
    "low-data": low_data_scores,
    "retrieval": retrieval_scores,
    "few-shot": few_shot_scores,
    "severity": severity_scores,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalResult(Answer):
    """The scores of a run; `eval.json` in its folder holds the same."""

    run_dir: Path
    objective: str
    protocols: tuple[str, ...]
    data: str | None
    """Images that were classified; None where only a protocol ran that brings its own."""
    train_data: str | None
    """Images of which features and labels were learned; the same."""
    images: int
    train_images: int
    budget: str
    """Options by which the run trained on a share of its images; empty: on all."""
    overlap: int
    """Images to classify that are among those to learn from."""
    corrupt_images: int
    """Left out of all sets."""
    scores: Scores

    def summary(self) -> str:
        """Return a table for people: shares in percent."""
        sets = f"; {self.train_images:,} images of {self.train_data} to learn from, {self.images:,} of {self.data} to classify"
        sets += f" ({self.budget})" if self.budget else ""
        sets += f", {self.overlap:,} of which are in both" if self.overlap else ""
        left_out = f"; {self.corrupt_images:,} that cannot be read left out" if self.corrupt_images else ""
        lines = [f"{self.run_dir}: {self.objective}{sets if self.data else ''}{left_out}"]
        columns = list(next(iter(self.scores.values())))
        wide = max(map(len, ("scores of", *columns))) + 2
        lines.append(f"{'scores of':<{wide}}{'measure':<26}" + "".join(f"{name:>20}" for name in self.scores))
        for column in columns:
            measures = dict.fromkeys(name for by_column in self.scores.values() for name in by_column[column])
            for name in measures:
                if name not in _HIDDEN and not name.endswith("_ci95"):
                    cells = "".join(f"{_shown(by_column[column], name):>20}" for by_column in self.scores.values())
                    lines.append(f"{column:<{wide}}{name:<26}{cells}")
        run = quoted(self.run_dir)
        return "\n".join([*lines, next_steps(f"train report {run}", f"train compare {run} OTHER_RUNS")])


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
    with stages("features to learn from", "features to classify", "scores"):
        result = _Evaluation(run_dir, options or EvalOptions()).run()
    # What was left by a process that was killed while it wrote.
    for folder in (run_dir.parent if _is_file(run_dir) else run_dir, _beside(run_dir, FOLDER)):
        remove_stale_temporaries(folder)
    write_scores(_beside(run_dir, EVAL_FILE), result.to_json())
    return result


class _Evaluation:
    """One call: the encoders, and their features of every set of images."""

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
        self._extracted: dict[Images, Features] = {}

    def run(self) -> EvalResult:
        """Score everything that is asked for."""
        chosen = self.options.chosen()
        text_side = self._open_text_side(chosen)
        data = EvalData(self.config, self.options) if set(chosen) & {*ON_LABELS, *ON_IMAGENET} else None
        # Opened before anything is computed: a wrong path is told at once.
        on_imagenet = self._imagenet_sets(chosen, data)
        mit_states = MitStates(Path(self.options.mit_states)) if self.options.mit_states and "mit-states" in chosen else None
        for number, name in enumerate(self.encoders):
            if data:
                tasks = self._tasks(data, number)
                self._score_columns(name, tasks, chosen, text_side if name == TRAINED else None)
                if on_imagenet:
                    answer = imagenet_answer(next(iter(tasks.values())))
                    for images in on_imagenet:
                        self.scores[name] |= images.scores(self._found(images.sources, number), answer)
            if mit_states:
                self.scores[name] |= mit_states.scores(self._found(mit_states.sources, number))
        if text_side is not None and "image-text" in chosen:
            self._score_captions(data.test if data else Images(RunImages(self.config).test(self.options)), text_side)
        return self._result(chosen, data)

    def _score_captions(self, images: Images, text_side: TextSide) -> None:
        """Score retrieval between images and the captions that the run's graph has of them.

        Raises:
            OptionError: If it has none, and the protocol was named.
        """
        found = self._found({"images": images}, 0)["images"]
        ids = [images.source.sample_ids[row] for row in found.rows.tolist()]
        graph = Graph.open(Path(self.config.graph_dir or ""))
        scores = image_text_scores(found.features, ids, graph, self.encoders[TRAINED], *text_side[:2])
        if not scores and "image-text" in self.options.protocols:
            raise OptionError(
                f"--protocol image-text: {graph.path} has captions of none of the {len(ids):,} images of {images.source.name}. "
                "Hold some of its own out of the training, with `train run --val-fraction` or --val-ids."
            )
        if scores:
            for name in self.encoders:
                self.scores[name]["image_text"] = scores if name == TRAINED else {}

    def _result(self, chosen: Sequence[ProtocolName], data: EvalData | None) -> EvalResult:
        return EvalResult(
            run_dir=self.path,
            objective=self.objective,
            protocols=tuple(chosen),
            data=data.test.source.name if data else None,
            train_data=data.train.source.name if data else None,
            images=len(self._extracted[data.test].rows) if data else 0,
            train_images=len(self._extracted[data.train].rows) if data else 0,
            budget=self.config.budget,
            overlap=data.overlap if data else 0,
            corrupt_images=sum(len(images.source) - len(found.rows) for images, found in self._extracted.items()),
            scores=self.scores,
        )

    def _open_text_side(self, chosen: Sequence[ProtocolName]) -> TextSide | None:
        """Open text tower, tokenizer and prompts, where a protocol on texts is named, or none ruled out and the run is CLIP's."""
        has_tower = not _is_file(self.path) and (self.path / TEXT_TOWER).exists()
        on_texts = set(ON_TEXTS)
        if not on_texts & set(chosen) or not (has_tower or on_texts & set(self.options.protocols)):
            return None
        tower = load_text_tower(self.path).to(self.device)
        tokenizer = Tokenizer(Path(self.config.graph_dir or "") / schemas.TOKENIZER, tower.shape["length"])
        return tower, tokenizer, read_templates(self.options.templates)

    def _tasks(self, data: EvalData, number: int) -> dict[str, Task]:
        """One task a label column, with the features of one encoder."""
        train, test = self._features(data.train, "features to learn from"), self._features(data.test, "features to classify")
        return {column: data.task(column, train, test, number, self.device) for column in data.columns}

    def _score_columns(
        self, name: str, tasks: Mapping[str, Task], chosen: Sequence[ProtocolName], text_side: TextSide | None
    ) -> None:
        """Score one encoder on every label column."""
        wanted = [protocol for protocol in ON_LABELS if protocol in chosen]
        with progress("scores", len(tasks) * len(wanted), unit="protocols") as meter:
            for column, task in tasks.items() if wanted else ():
                scores = describe(task)
                for protocol in wanted:
                    if protocol in _BY_COLUMN:
                        scores |= _BY_COLUMN[protocol](task)
                    meter.advance(note=f"{name} encoder, {column}: {protocol}")
                if text_side is not None and "zero-shot" in chosen:
                    scores |= zero_shot_scores(task, self.encoders[TRAINED], *text_side)
                self.scores[name][column] = scores

    def _imagenet_sets(self, chosen: Sequence[ProtocolName], data: EvalData | None) -> list[ImageNetSet]:
        options = self.options
        sets: list[ImageNetSet] = []
        if "imagenet-real" in chosen and options.real_labels and data:
            sets.append(ImageNetReal(data.test, Path(options.real_labels)))
        if "imagenet-9" in chosen and options.imagenet9:
            sets.append(ImageNet9(Path(options.imagenet9), Path(options.in9_map) if options.in9_map else None))
        if "objectnet" in chosen and options.objectnet:
            sets.append(ObjectNet(Path(options.objectnet)))
        return sets

    def _found(self, sources: Mapping[str, Images], number: int) -> dict[str, Found]:
        """One encoder's features of some sets of images."""
        every = {name: self._features(images, f"features of {name}") for name, images in sources.items()}
        return {name: Found(found.rows, found.by_encoder[number].to(self.device)) for name, found in every.items()}

    def _features(self, images: Images, label: str) -> Features:
        """Features of images by every encoder; computed once."""
        if images not in self._extracted:
            how = self._extraction()
            self._extracted[images] = features_of(list(self.encoders.values()), images, how, label=label)
        return self._extracted[images]

    def _extraction(self) -> Extraction:
        config = self.config
        return Extraction(
            folder=_beside(self.path, FOLDER) if self.options.cache else None,
            device=self.device,
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
        projector_bn=encoder.projector_bn,
    )
