"""What `train eval` takes, the protocols there are, and which of them run when none is named. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from graphbuild.errors import OptionError
from train.config.kinds import flag

ProtocolName = Literal[
    "knn",
    "linear",
    "low-data",
    "retrieval",
    "few-shot",
    "severity",
    "zero-shot",
    "image-text",
    "imagenet-real",
    "imagenet-9",
    "objectnet",
    "mit-states",
]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)
ON_LABELS: tuple[ProtocolName, ...] = ("knn", "linear", "low-data", "retrieval", "few-shot", "severity", "zero-shot")
"""Run on every label column of the images to classify."""
ON_IMAGENET: tuple[ProtocolName, ...] = ("imagenet-real", "imagenet-9", "objectnet")
"""Take the answers of a linear probe that learned ImageNet's classes."""
ON_TEXTS: tuple[ProtocolName, ...] = ("zero-shot", "image-text")
"""Ask CLIP's text tower; left out of what is run by default where there is none."""
NEEDS: dict[ProtocolName, str] = {
    "few-shot": "held_out",
    "severity": "hierarchy",
    "imagenet-real": "real_labels",
    "imagenet-9": "imagenet9",
    "objectnet": "objectnet",
    "mit-states": "mit_states",
}
"""The option without which a protocol has nothing to run on."""
# Not held_out: its classes are left out of the other scores, too.
TAKES: dict[str, ProtocolName] = {
    **{option: protocol for protocol, option in NEEDS.items() if option != "held_out"},
    "in9_map": "imagenet-9",
    "superclass_column": "retrieval",
    "templates": "zero-shot",
}
"""The protocol that alone takes an option."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """Which images, which labels, which protocols."""

    data: str | None = None
    """Images to classify; None: those held out of the training, CIFAR's test split, what the run's graph records, or a
    validation set beside the run's images."""
    train_data: str | None = None
    """Images to learn from; None: those that the run was trained on."""
    val_ids: str | None = None
    """File with a sample id a line: images of the run's source that are classified, and not learned from."""
    val_fraction: float = 0.0
    """Share of the images of the run's source that is classified, and not learned from."""
    allow_overlap: bool = False
    """Go on although over 1 % of the images to classify are among those to learn from."""
    label_columns: tuple[str, ...] = ()
    """Columns of the classes, one set of scores each; none: the run's or the data set's, else `label`."""
    superclass_column: str | None = None
    """Column of the superclasses, for retrieval."""
    held_out: str | None = None
    """File with a class a line: left out of everything but few-shot, which is scored on them alone."""
    hierarchy: str | None = None
    """Distances between classes, for severity: `.npz` with wnids and dist, or `.tsv` with hypernym_path."""
    real_labels: str | None = None
    """ImageNet-Real's real.json; the images to classify are then ImageNet's validation images."""
    imagenet9: str | None = None
    """Folder of the backgrounds challenge."""
    in9_map: str | None = None
    """Its in_to_in9.json; None: in that folder, or beside it."""
    objectnet: str | None = None
    """Folder of ObjectNet, with images/ and mappings/."""
    mit_states: str | None = None
    """Folder of MIT-States, with images/."""
    templates: str | None = None
    """JSON list of prompts for zero-shot; None: "a photo of a {}"."""
    protocols: tuple[ProtocolName, ...] = ()
    """What is measured; none: everything that the data allow."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:INDEX."""
    untrained: bool = True
    """Score the same net with its initial weights, too."""
    cache: bool = True
    """Keep features beside the run, and use those that are there."""

    def chosen(self) -> tuple[ProtocolName, ...]:
        """Return the protocols named, else those that the data allow; `ON_TEXTS` are left to whether there is a text tower.

        Raises:
            OptionError: If one is named that needs a file which is not, or an option is given that none of them takes.
        """
        able = tuple(name for name in PROTOCOLS if name not in NEEDS or getattr(self, NEEDS[name]) is not None)
        for name in self.protocols:
            if name not in able:
                raise OptionError(f"--protocol {name} needs {flag(NEEDS[name])}.")
        chosen = tuple(name for name in able if name in self.protocols or not self.protocols)
        for option, protocol in TAKES.items():
            if getattr(self, option) is not None and protocol not in chosen:
                remedy = f"--protocol {protocol}" if self.protocols else flag(NEEDS[protocol])
                raise OptionError(
                    f"{flag(option)} is for the protocol {protocol}, which is not asked for. Add {remedy}, or leave it out."
                )
        return chosen
