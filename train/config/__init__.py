"""The configuration of a training run: its options, their types, and the file that holds them. Nothing here loads torch."""

from train.config.checked import TrainConfig, field_docs, field_groups, field_types, repeated_by, told_objective
from train.config.files import load_config, read_toml
from train.config.options import AugmentName, ModelName, Objective

__all__ = [
    "AugmentName",
    "ModelName",
    "Objective",
    "TrainConfig",
    "field_docs",
    "field_groups",
    "field_types",
    "load_config",
    "read_toml",
    "repeated_by",
    "told_objective",
]
