"""The configuration of a training run: one frozen dataclass, read from flags and TOML, written back as TOML.

The command line is generated from `TrainConfig`: names, types, ranges, defaults and help are spelled here and nowhere
else. Nothing here loads torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from graphbuild.errors import OptionError


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number; `open_low` leaves the lower bound itself out."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies within; NaN never does."""
        return (value > self.low if self.open_low else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low:g}"
        return low if math.isinf(self.high) else f"{low} and at most {self.high:g}"


Objective = Literal["xclr", "simclr", "supcon", "clip"]
ModelName = Literal["small", "resnet18", "resnet34", "resnet50", "resnet101"]
AugmentName = Literal["simclr", "autoaugment", "none"]
OptimizerName = Literal["sgd", "lars", "adamw"]
ScalingName = Literal["none", "linear", "sqrt"]
TeacherName = Literal["graph", "embeddings"]
BatchesName = Literal["random", "neighbors"]
SymmetrizeName = Literal["union", "mutual"]
OnDeviceName = Literal["auto", "yes", "no"]
Precision = Literal["auto", "float32", "bfloat16"]
Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
AboveZero = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True)]

_LOOSE = {"loose": True}
"""Marks a field that may change when a run is resumed: it changes no number that the run computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How an encoder is trained; every field is an option of `train run` and a key of `config.toml`.

    Raises:
        OptionError: If a value is out of its range, or options contradict each other.
    """

    graph_dir: str | None = field(default=None, metadata=_LOOSE)
    """The graph directory (default: $GRAPHBUILD_DIR, else the only graph under graphs/)."""
    data: str | None = field(default=None, metadata=_LOOSE)
    """Images: webdataset shards, Parquet files, class folders, or cifar10[:FOLDER] (default: what the graph records)."""
    objective: Objective = "xclr"
    """Which target the loss is taken against; clip trains a text tower on the captions beside the image encoder."""
    image_column: str | None = None
    """Parquet column of the image bytes (default: the only binary column)."""
    id_column: str | None = None
    """Parquet column of the sample ids (default: the one that the graph records), or key of the JSON in shards (default: url)."""
    val_ids: str | None = None
    """File with a sample id a line: images that are left out of the training, and classified by `train eval`."""
    val_fraction: Annotated[float, Range(0, 1)] = 0.0
    """Share of the images that is left out of the training, chosen by their ids, and classified by `train eval`."""
    label_column: str | None = None
    """Column of the classes for supcon (default: equal texts of the graph are a class)."""
    model: ModelName = "small"
    """The image encoder."""
    image_size: Positive = 64
    """Height and width of a view in pixels."""
    load_size: Count = 0
    """Height and width at which images are held; 0 chooses by the images, between one and two view sizes."""
    batch_size: Annotated[int, Range(2)] = 256
    """Images a step; each gives two views."""
    batches: BatchesName = "random"
    """How images are put together: at random, or chunks of neighbours at random."""
    chunk: Annotated[int, Range(1, 128)] = 32
    """Images a chunk of --batches neighbors; 1 is the same as random."""
    neighbor_ranks: str | None = None
    """Ranks of the neighbours that chunks are grown along, such as 1:64 (default: all)."""
    epochs: Positive = 20
    """Passes over the images."""
    steps: Positive | None = None
    """Stop after this many steps, with the learning rate scheduled for them."""
    tau: AboveZero = 0.1
    """Temperature of the learned embeddings."""
    tau_s: AboveZero = 0.1
    """Temperature of the xclr target."""
    teacher: TeacherName = "graph"
    """Where xclr takes similarities from: the graph's rows and sketches, or its embeddings, exact, held in memory."""
    absent: float | None = None
    """Similarity of pairs that the graph does not store (default: the graph's sketch)."""
    own_weight: Annotated[float, Range(0, 1)] = 0.0
    """Share of the xclr target that is given to the other view of the same image; the rest stays soft."""
    symmetrize: SymmetrizeName = "union"
    """Whether a pair counts as stored if either of its texts stores it, or only if both do (mutual)."""
    min_similarity: float | None = None
    """Pairs below this similarity are left out of the xclr target (default: none is)."""
    lr: AboveZero | None = None
    """Peak learning rate, before --lr-scaling (default: 0.12 for sgd, 0.3 for lars, 0.001 for adamw)."""
    lr_scaling: ScalingName = "none"
    """Multiplies --lr: linear by batch size / 256, sqrt by the square root of the batch size, as SimCLR's two rules have it."""
    loss_tile: Count = 0
    """Images whose part of the loss is computed at a time; 0 keeps the logits of a tile within 256 MiB."""
    optimizer: OptimizerName = "sgd"
    """How weights are updated."""
    weight_decay: NonNegative = 5e-4
    """Weight decay; biases and normalisation take none."""
    momentum: Annotated[float, Range(0, 1)] = 0.9
    """Momentum of sgd and lars, first beta of adamw."""
    warmup_epochs: NonNegative = 1.0
    """Epochs over which the learning rate rises linearly, at most a tenth of the run."""
    init: str | None = None
    """Weights that a ResNet starts from: torchvision:NAME, such as torchvision:IMAGENET1K_V2, or torchvision:PATH of a file."""
    compile: bool = False
    """Compile the encoder (torch.compile)."""
    text_width: Annotated[int, Range(64, 4096)] = 256
    """Width of clip's text tower; a multiple of 64."""
    text_layers: Positive = 4
    """Layers of clip's text tower."""
    text_length: Annotated[int, Range(4)] = 32
    """Tokens that clip's text tower reads of a text; longer ones are cut."""
    projector_dim: Positive = 128
    """Width of the embedding that the loss sees."""
    projector_hidden: Positive = 512
    """Width of the projector's hidden layer."""
    projector_bn: bool = False
    """End the projector in a BatchNorm, as SimCLR's does."""
    augment: AugmentName = "simclr"
    """How views are made."""
    crop_min: Fraction = 0.2
    """Smallest share of an image's area that a crop keeps; SimCLR has 0.08 on ImageNet."""
    color_strength: NonNegative = 0.5
    """Strength of the simclr augmentation's colour jitter; SimCLR has 1 on ImageNet, 0.5 on CIFAR."""
    seed: Count = 0
    """Decides weights, batches, captions and augmentations."""
    precision: Precision = "auto"
    """Arithmetic of the encoder; auto is bfloat16 where the hardware multiplies in it."""
    device: str = field(default="auto", metadata=_LOOSE)
    """auto, cpu, cuda or cuda:INDEX."""
    graph_on_device: OnDeviceName = field(default="auto", metadata=_LOOSE)
    """Whether the graph's rows are held on the device; auto does so on a GPU with room to spare."""
    images_on_device: OnDeviceName = field(default="auto", metadata=_LOOSE)
    """Whether decoded images are held on the device; auto does so on a GPU with room to spare."""
    workers: Positive = field(default=2, metadata=_LOOSE)
    """Threads that decode images."""
    cache_gb: NonNegative = field(default=4.0, metadata=_LOOSE)
    """Decoded images are held in memory up to this size, else decoded batch by batch."""
    checkpoint_every: Positive = field(default=500, metadata=_LOOSE)
    """Steps between checkpoints; one is written at the end, too."""
    checkpoint_minutes: NonNegative = field(default=0.0, metadata=_LOOSE)
    """Minutes between checkpoints, beside those by steps; 0: by steps alone."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = field(default=False, metadata=_LOOSE)
    """Write the lines of metrics.jsonl for TensorBoard, too: RUN/tensorboard/."""
    kl_every: Count = 100
    """Steps between measurements of KL(dense || assembled), xclr only; 0 measures none."""
    allow_missing: bool = False
    """Train although the graph knows under 95 % of the images."""
    max_corrupt: Count = field(default=100, metadata=_LOOSE)
    """Give up when more images than this cannot be read."""

    def __post_init__(self) -> None:
        for name, kind in field_types().items():
            _check(name, kind, getattr(self, name))
        if 0 < self.load_size < self.image_size:
            raise OptionError(
                f"--load-size {self.load_size} is smaller than --image-size {self.image_size}. Raise it, or leave it out."
            )
        if self.lr_scaling != "none" and self.lr is None:
            raise OptionError(f"--lr-scaling {self.lr_scaling} scales a learning rate that is named: add --lr.")
        if self.text_width % 64:
            raise OptionError(f"--text-width {self.text_width} is not a multiple of 64. Take {self.text_width // 64 * 64 or 64}.")
        if self.init is not None and self.model == "small":
            raise OptionError("--init is for the ResNets of torchvision, and --model is small. Add --model resnet50, say.")
        if self.teacher != "graph" and self.objective != "xclr":
            raise OptionError(f"--teacher {self.teacher} is for --objective xclr, not {self.objective}. Leave it out.")
        if self.batches == "neighbors" and self.chunk > self.batch_size:
            raise OptionError(
                f"--chunk {self.chunk} is more than --batch-size {self.batch_size}. Lower it, or raise the batch size."
            )
        if self.neighbor_ranks is not None:
            from graphbuild.targets.partition import parse_ranks

            parse_ranks(self.neighbor_ranks)

    def to_toml(self) -> str:
        """Every field as TOML; what is None is left out. `read_toml` gives the same values back."""
        lines = [f"{name} = {_toml(value)}" for name in field_types() if (value := getattr(self, name)) is not None]
        return "\n".join(lines) + "\n"

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """Fields in which a resumed run (`other`) would compute something else, with both values."""
        strict = [item.name for item in fields(self) if not item.metadata.get("loose")]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in strict}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@cache
def field_types() -> Mapping[str, Any]:
    """Name and annotated type of every field, in order."""
    hints = typing.get_type_hints(TrainConfig, include_extras=True)
    return {item.name: hints[item.name] for item in fields(TrainConfig)}


@cache
def field_docs() -> Mapping[str, str]:
    """The docstring under every field, read from this file's source: the help text of its option."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(TrainConfig) or TrainConfig))
    (node,) = [item for item in tree.body if isinstance(item, ast.ClassDef) and item.name == TrainConfig.__name__]
    docs = {}
    for item, following in zip(node.body, node.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(following, ast.Expr):
            docs[item.target.id] = str(ast.literal_eval(following.value))
    return docs


@dataclass(frozen=True, slots=True)
class FieldType:
    """A field's type taken apart."""

    base: type
    choices: tuple[str, ...] = ()
    range: Range | None = None
    optional: bool = False


def split_type(kind: Any) -> FieldType:
    """Take `Annotated`, `Literal` and `| None` apart."""
    if get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = [item for item in get_args(kind) if item is not type(None)]
        return dataclasses.replace(split_type(inner), optional=True)
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)
        return FieldType(base, range=limits)
    if get_origin(kind) is Literal:
        return FieldType(str, choices=get_args(kind))
    return FieldType(kind)


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def _check(name: str, kind: Any, value: Any) -> None:
    form = split_type(kind)
    if value is None and form.optional:
        return
    numeric = form.base is float and isinstance(value, int) and not isinstance(value, bool)
    if not numeric and type(value) is not form.base:
        raise OptionError(f"{flag(name)}: {value!r} is not {'an' if form.base is int else 'a'} {form.base.__name__}.")
    if form.choices and value not in form.choices:
        raise OptionError(f"{flag(name)}: {value!r} is none of {', '.join(form.choices)}.")
    if form.range and not form.range.holds(value):
        raise OptionError(f"{flag(name)}: {value} is not {form.range}.")
    # -inf is a value of --absent: such pairs are left out of the target.
    if form.base is float and (math.isnan(value) or value == math.inf):
        raise OptionError(f"{flag(name)}: {value} is not a finite number.")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # A JSON string is a TOML basic string, once DEL is escaped, which JSON leaves alone.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a configuration file, still unchecked except for their names.

    Raises:
        OptionError: If it cannot be read, is not TOML, or holds an unknown key (the nearest known one is named).
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not TOML ({error}).") from None
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}. --config takes a TOML file such as a run's config.toml.") from None
    unknown = [key for key in values if key not in field_types()]
    if unknown:
        raise OptionError(f"{path}: unknown key {unknown[0]!r}{_did_you_mean(unknown[0])}")
    return values


def _did_you_mean(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key.replace("-", "_"), field_types(), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known keys: {', '.join(field_types())}."


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """A configuration from a TOML file, if there is one, and values that go before it.

    Raises:
        OptionError: If a key is unknown or a value out of range.
    """
    return TrainConfig(**{**(read_toml(path) if path else {}), **overrides})
