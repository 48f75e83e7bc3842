"""TrainConfig: ranges, TOML, and what may change when a run is resumed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError
from graphbuild.system.options import LARGEST_SEED
from train.config import TrainConfig, field_docs, field_types, load_config, read_toml, told_objective


def test_every_field_has_the_help_text_of_its_option() -> None:
    assert list(field_docs()) == list(field_types())
    assert all(text.endswith(".") for text in field_docs().values())


@settings(deadline=None)
@given(data=st.text(), lr=st.floats(1e-30, 1e30), seed=st.integers(0, LARGEST_SEED), absent=st.floats(-1, 1) | st.just(-math.inf))
def test_toml_gives_the_same_configuration_back(
    tmp_path_factory: pytest.TempPathFactory, data: str, lr: float, seed: int, absent: float
) -> None:
    config = TrainConfig(data=data, lr=lr, seed=seed, absent=absent, allow_missing=True)
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(config.to_toml().encode("utf-8", "surrogatepass"))
    assert load_config(path, {}) == config


def test_unknown_toml_key_is_refused_and_the_nearest_one_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("batchsize = 64\n")
    with pytest.raises(OptionError, match=r"run\.toml: unknown key 'batchsize'\. Did you mean 'batch_size'\?"):
        read_toml(path)


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('objective = "simclr"\nepochs = 3\n')
    config = load_config(path, {"epochs": 7})
    assert (config.objective, config.epochs) == ("simclr", 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0.0}, "--tau: 0.0 is not more than 0"),
        ({"batch_size": 1}, "--batch-size: 1 is not at least 2"),
        ({"crop_min": 1.5}, "--crop-min: 1.5 is not more than 0 and at most 1"),
        ({"objective": "byol"}, "--objective: 'byol' is none of xclr, simclr, supcon, clip"),
        ({"epochs": "3"}, "--epochs: '3' is not an int"),
        ({"epochs": True}, "--epochs: True is not an int"),
        ({"lr": math.nan}, "--lr: nan is not more than 0"),
        ({"absent": math.inf}, "--absent: inf is not a finite number"),
        ({"load_size": 32, "image_size": 64}, "--load-size 32 is smaller than --image-size 64"),
    ],
)
def test_bad_value_is_refused_with_its_option_and_range(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainConfig(**changes)  # type: ignore[arg-type]


def test_broken_toml_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("epochs = \n")
    with pytest.raises(OptionError, match=r"run\.toml: not TOML"):
        read_toml(path)


def test_objective_is_told_with_its_options_but_no_place() -> None:
    assert told_objective(TrainConfig(objective="xclr")) == "xclr"
    assert told_objective(TrainConfig(negatives="hard", beta=0.5, queue=64)) == "xclr, --negatives hard, --beta 0.5, --queue 64"
    assert told_objective(TrainConfig(head=("names=/somewhere/g:0.7", "other=h:0.3"))) == "xclr, --head names, --head other"
    assert TrainConfig(objective="simsiam").logit_temperature is None
    assert TrainConfig(objective="clip").logit_temperature == "learned"


def test_only_fields_that_change_numbers_count_as_differences() -> None:
    one, other = TrainConfig(), TrainConfig(workers=9, checkpoint_every=1, tau=0.2)
    assert one.differences(other) == {"tau": (0.1, 0.2)}
