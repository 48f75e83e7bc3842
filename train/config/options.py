"""The options of a training run: names, types, ranges, defaults and help, spelled here and nowhere else.

The command line is generated from them. Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from graphbuild.store.choices import OnDevice, Symmetrize, Teacher
from graphbuild.system.options import LARGEST_SEED
from train.config.graphs import GraphOptions
from train.config.kinds import CONTRASTIVE, LOOSE, TARGET, WITHOUT_NEGATIVES, Range, doc

Objective = Literal["xclr", "simclr", "supcon", "clip", "vicreg", "barlow", "simsiam", "lejepa", "rank"]
ModelName = Literal["small", "resnet18", "resnet34", "resnet50", "resnet101"]
AugmentName = Literal["simclr", "autoaugment", "none"]
OptimizerName = Literal["sgd", "lars", "adamw"]
ScalingName = Literal["none", "linear", "sqrt"]
NegativesName = Literal["uniform", "decoupled", "decoupled-weighted", "hard", "graph", "mixed"]
MassOf = Literal["own-view", "own-class"]
PositivesName = Literal["own", "graph"]
BatchesName = Literal["random", "neighbors"]
CropFrom = Literal["auto", "held", "original"]
Precision = Literal["auto", "float32", "bfloat16"]
Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, LARGEST_SEED)]
AboveZero = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True)]

_CLIP = {"group": "clip"}
_NEGATIVES, _PULLED = {"group": ", ".join(CONTRASTIVE)}, {"group": ", ".join(WITHOUT_NEGATIVES)}
_SUPCON, _VICREG, _BARLOW, _SIMSIAM, _LEJEPA = ({"group": name} for name in ("supcon", "vicreg", "barlow", "simsiam", "lejepa"))
"""Which objectives read a field; the help of `train run` is grouped by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions(GraphOptions):
    """How an encoder is trained; every field is an option of `train run` and a key of `config.toml`."""

    data: str | None = field(
        default=None,
        metadata=doc(
            "Images: webdataset shards, Parquet files, class folders, cifar10[:FOLDER], or hf:FOLDER[:SPLIT] (default: what the "
            "graph records).",
            LOOSE,
        ),
    )
    objective: Objective = field(
        default="xclr",
        metadata=doc("What is learned (docs/objectives.md); clip trains a text tower on the captions beside the image encoder."),
    )
    image_column: str | None = field(
        default=None, metadata=doc("Parquet column of the image bytes (default: the only binary column).")
    )
    id_column: str | None = field(
        default=None,
        metadata=doc(
            "Parquet column of the sample ids (default: the one that the graph records), "
            "or key of the JSON in shards (default: url)."
        ),
    )
    val_ids: str | None = field(
        default=None,
        metadata=doc("File with a sample id a line: images that are left out of the training, and classified by `train eval`."),
    )
    val_fraction: Annotated[float, Range(0, 1)] = field(
        default=0.0,
        metadata=doc("Share of the images that is left out of the training, chosen by their ids, and classified by `train eval`."),
    )
    per_class: Positive | None = field(
        default=None, metadata=doc("Train on so many images of each class, chosen by --seed and their ids (default: on all).")
    )
    fraction: Fraction = field(
        default=1.0,
        metadata=doc("Train on this share of each class (of all images where they have no classes), chosen in the same way."),
    )
    label_column: str | None = field(
        default=None,
        metadata=doc(
            "Column of the classes for supcon and --mass-of own-class (default: equal texts of the graph are a class) and for "
            "--per-class (default: label).",
            _SUPCON,
        ),
    )
    model: ModelName = field(default="small", metadata=doc("The image encoder."))
    image_size: Positive = field(default=64, metadata=doc("Height and width of a view in pixels."))
    load_size: Count = field(
        default=0,
        metadata=doc("Height and width at which images are held; 0 chooses by the images, between one and two view sizes."),
    )
    crop_from: CropFrom = field(
        default="auto",
        metadata=doc(
            "What views are cut from: images held at --load-size, or originals, decoded for each batch (auto: by --cache-gb)."
        ),
    )
    batch_size: Annotated[int, Range(2)] = field(default=256, metadata=doc("Images a step; each gives two views."))
    batches: BatchesName = field(
        default="random", metadata=doc("How images are put together: at random, or chunks of neighbours at random.")
    )
    chunk: Annotated[int, Range(1, 128)] = field(
        default=32, metadata=doc("Images a chunk of --batches neighbors; 1 is the same as random.")
    )
    neighbor_ranks: str | None = field(
        default=None, metadata=doc("Ranks of the neighbours that chunks are grown along, such as 1:64 (default: all).")
    )
    epochs: Positive = field(default=20, metadata=doc("Passes over the images."))
    steps: Positive | None = field(
        default=None,
        metadata=doc("Stop after this many steps, if --epochs has as many, with the learning rate scheduled for them."),
    )
    tau: AboveZero | Literal["learned"] = field(
        default=0.1,
        metadata=doc("Temperature of the learned embeddings, or learned: from 0.07, as CLIP's, for xclr, simclr and supcon."),
    )
    tau_s: AboveZero | Literal["auto"] = field(
        default=0.1,
        metadata=doc(
            "Temperature of the target, or auto: solved for --target-mass or --target-positives on a sample of batches.", TARGET
        ),
    )
    target_mass: Annotated[float, Range(0, 1, open_low=True)] = field(
        default=0.36, metadata=doc("Mean share of the target that --tau-s auto gives to what --mass-of names.", TARGET)
    )
    mass_of: MassOf = field(
        default="own-view",
        metadata=doc(
            "What has --target-mass: the other view, or the images of the own class (--label-column, else equal texts).", TARGET
        ),
    )
    target_positives: Annotated[float, Range(1)] | None = field(
        default=None,
        metadata=doc(
            "Effective positives, exp of the target's mean entropy, that --tau-s auto solves for in place of a mass.", TARGET
        ),
    )
    teacher: Teacher = field(
        default="graph",
        metadata=doc(
            "Where xclr takes similarities from: the graph's rows and sketches, or its embeddings, exact, held in memory.", TARGET
        ),
    )
    absent: float | None = field(
        default=None, metadata=doc("Similarity of pairs that the graph does not store (default: the graph's sketch).", TARGET)
    )
    own_weight: Annotated[float, Range(0, 1)] = field(
        default=0.0,
        metadata=doc("Share of the xclr target that is given to the other view of the same image; the rest stays soft.", TARGET),
    )
    symmetrize: Symmetrize = field(
        default="union",
        metadata=doc("Whether a pair counts as stored if either of its texts stores it, or only if both do (mutual).", TARGET),
    )
    min_similarity: float | None = field(
        default=None, metadata=doc("Pairs below this similarity are left out of the xclr target (default: none is).", TARGET)
    )
    negatives: NegativesName = field(
        default="uniform",
        metadata=doc(
            "How pairs weigh in the denominator: all alike, without positives, by hardness, by the graph, or with mixtures beside.",
            _NEGATIVES,
        ),
    )
    dclw_sigma: AboveZero = field(default=0.5, metadata=doc("Width of the weights of decoupled-weighted.", _NEGATIVES))
    beta: NonNegative = field(
        default=1.0, metadata=doc("How much more hard negatives weigh: exp(beta l); 0 weighs them alike.", _NEGATIVES)
    )
    prior: Annotated[float, Range(0, 1)] = field(
        default=0.0,
        metadata=doc("Share of hard's negatives that are taken for positives; about 1 / number of classes.", _NEGATIVES),
    )
    hardest: Positive = field(default=32, metadata=doc("Negatives of an anchor that mixed draws from.", _NEGATIVES))
    mixtures: Positive = field(default=16, metadata=doc("Mixtures an anchor that mixed adds.", _NEGATIVES))
    queue: Count = field(
        default=0,
        metadata=doc("Images of past batches whose embeddings an anchor is compared with, too; 0: of none.", _NEGATIVES),
    )
    positives: PositivesName = field(
        default="own",
        metadata=doc(
            "Whom a view is drawn to: the other view of its image, as published, or the mean over partners of the graph's target.",
            _PULLED,
        ),
    )
    vicreg_invariance: NonNegative = field(default=25.0, metadata=doc("Weight of the distance to partners.", _VICREG))
    vicreg_variance: NonNegative = field(default=25.0, metadata=doc("Weight of the hinge on each coordinate's deviation.", _VICREG))
    vicreg_covariance: NonNegative = field(default=1.0, metadata=doc("Weight of the covariances between coordinates.", _VICREG))
    barlow_redundancy: NonNegative = field(default=5e-3, metadata=doc("Weight of the correlations between coordinates.", _BARLOW))
    lejepa_isotropy: Annotated[float, Range(0, 1)] = field(
        default=0.05, metadata=doc("Share of the loss that asks for an isotropic Gaussian; the rest draws to partners.", _LEJEPA)
    )
    lejepa_directions: Positive = field(
        default=1024, metadata=doc("Random directions a step, along which embeddings are compared with a Gaussian.", _LEJEPA)
    )
    predictor_hidden: Positive = field(
        default=64, metadata=doc("Width of the predictor's hidden layer; a quarter of --projector-dim in the paper.", _SIMSIAM)
    )
    lr: AboveZero | None = field(
        default=None,
        metadata=doc(
            "Peak learning rate, before --lr-scaling (default: 0.12 for sgd, 0.005 with vicreg, 0.3 for lars, 0.001 for adamw)."
        ),
    )
    lr_scaling: ScalingName = field(
        default="none",
        metadata=doc(
            "Multiplies --lr: linear by batch size / 256, sqrt by the square root of the batch size, as SimCLR's two rules have it."
        ),
    )
    loss_tile: Count = field(
        default=0,
        metadata=doc("Images whose part of the loss is computed at a time; 0 keeps the logits of a tile within 256 MiB."),
    )
    optimizer: OptimizerName = field(default="sgd", metadata=doc("How weights are updated."))
    weight_decay: NonNegative = field(default=5e-4, metadata=doc("Weight decay; biases and normalisation take none."))
    momentum: Annotated[float, Range(0, 1)] = field(default=0.9, metadata=doc("Momentum of sgd and lars, first beta of adamw."))
    warmup_epochs: NonNegative = field(
        default=1.0, metadata=doc("Epochs over which the learning rate rises linearly, at most a tenth of the run.")
    )
    init: str | None = field(
        default=None,
        metadata=doc(
            "Weights that a ResNet starts from: torchvision:NAME, such as torchvision:IMAGENET1K_V2, timm:NAME, such as "
            "timm:a1_in1k, or torchvision:PATH, timm:PATH, open_clip:PATH of a file; run:PATH of a run's, whatever its net."
        ),
    )
    compile: bool = field(default=False, metadata=doc("Compile the encoder (torch.compile)."))
    text_width: Annotated[int, Range(64, 4096)] = field(
        default=256, metadata=doc("Width of clip's text tower; a multiple of 64.", _CLIP)
    )
    text_layers: Positive = field(default=4, metadata=doc("Layers of clip's text tower.", _CLIP))
    text_length: Annotated[int, Range(4)] = field(
        default=32, metadata=doc("Tokens that clip's text tower reads of a text; longer ones are cut.", _CLIP)
    )
    projector_dim: Positive = field(default=128, metadata=doc("Width of the embedding that the loss sees."))
    projector_hidden: Positive = field(default=512, metadata=doc("Width of the projector's hidden layer."))
    projector_bn: bool = field(default=False, metadata=doc("End the projector in a BatchNorm, as SimCLR's does."))
    augment: AugmentName = field(default="simclr", metadata=doc("How views are made."))
    crop_min: Fraction = field(
        default=0.2, metadata=doc("Smallest share of an image's area that a crop keeps; SimCLR has 0.08 on ImageNet.")
    )
    color_strength: NonNegative = field(
        default=0.5, metadata=doc("Strength of the simclr augmentation's colour jitter; SimCLR has 1 on ImageNet, 0.5 on CIFAR.")
    )
    seed: Seed = field(default=0, metadata=doc("Decides weights, batches, captions and augmentations."))
    precision: Precision = field(
        default="auto", metadata=doc("Arithmetic of the encoder; auto is bfloat16 where the hardware multiplies in it.")
    )
    device: str = field(default="auto", metadata=doc("auto, cpu, cuda or cuda:INDEX.", LOOSE))
    graph_on_device: OnDevice = field(
        default="auto",
        metadata=doc("Whether the graph's rows are held on the device; auto does so on a GPU with room to spare.", LOOSE),
    )
    images_on_device: OnDevice = field(
        default="auto",
        metadata=doc("Whether decoded images are held on the device; auto does so on a GPU with room to spare.", LOOSE),
    )
    workers: Positive = field(default=2, metadata=doc("Threads that decode images.", LOOSE))
    cache_gb: NonNegative = field(
        default=4.0, metadata=doc("Decoded images are held in memory up to this size, else decoded batch by batch.", LOOSE)
    )
    checkpoint_every: Positive = field(
        default=500, metadata=doc("Steps between checkpoints; one is written at the end, too.", LOOSE)
    )
    checkpoint_minutes: NonNegative = field(
        default=0.0, metadata=doc("Minutes between checkpoints, beside those by steps; 0: by steps alone.", LOOSE)
    )
    log_every: Positive = field(default=10, metadata=doc("Steps between lines of metrics.jsonl."))
    tensorboard: bool = field(
        default=False, metadata=doc("Write the lines of metrics.jsonl for TensorBoard, too: RUN/tensorboard/.", LOOSE)
    )
    kl_every: Count = field(
        default=100, metadata=doc("Steps between measurements of KL(dense || assembled), xclr only; 0 measures none.", TARGET)
    )
    allow_missing: bool = field(default=False, metadata=doc("Train although the graph knows under 95 % of the images."))
    max_corrupt: Count = field(default=100, metadata=doc("Give up when more images than this cannot be read.", LOOSE))

    @property
    def uses_graph(self) -> bool:
        """Whether the loss takes similarities from the graph."""
        return self.objective in ("xclr", "rank") or "graph" in (self.negatives, self.positives)

    @property
    def logit_temperature(self) -> float | str | None:
        """What the learned similarities of the loss are divided by; None where it has none."""
        if self.objective in WITHOUT_NEGATIVES:
            return None
        return "learned" if self.objective == "clip" else self.tau

    @property
    def has_soft_target(self) -> bool:
        """Whether the loss has a target of the graph's similarities, softened by tau_s."""
        return self.objective == "xclr" or self.positives == "graph"

    @property
    def budget(self) -> str:
        """Return the options by which a run trains on a share of its images; empty if it trains on all."""
        if self.per_class is not None:
            return f"--per-class {self.per_class}"
        return f"--fraction {self.fraction:g}" if self.fraction < 1 else ""
