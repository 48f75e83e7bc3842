"""The `train` command line: its options, its errors, and runs on real pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph
from helpers_train import write_images, write_tiny_graph

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.cli import cli, main
from train.config import field_types, repeated_by
from train.config.kinds import flag

OPTIONS = set(
    """
    --barlow-redundancy --beta --dclw-sigma --graph-mix --graph-weights --hardest --head --lejepa-directions
    --lejepa-isotropy --mass-of --mixtures --negatives --positives --predictor-hidden --prior --queue
    --similarity --target-mass --target-positives
    --vicreg-covariance --vicreg-invariance --vicreg-variance
    --cache-dir --no-verify
    --absent --allow-missing --augment --batch-size --batches --cache-gb --checkpoint-every --checkpoint-minutes --chunk
    --color-strength --compile --config
    --crop-from --crop-min --data --device --epochs --fraction --graph-dir --graph-on-device --help --id-column --image-column
    --image-size
    --images-on-device --init --json --kl-every --label-column --load-size --log-every --loss-tile --lr --lr-scaling
    --max-corrupt --min-similarity --model --momentum --neighbor-ranks --objective --optimizer --overwrite --own-weight --per-class
    --precision --projector-bn --projector-dim --projector-hidden --run-dir --seed --steps --symmetrize --tau --tau-s --teacher
    --tensorboard --text-layers --text-length --text-width --val-fraction --val-ids --warmup-epochs --weight-decay --workers
    """.split()  # noqa: SIM905 - a list of quoted words would be three times as long
)


@dataclass(frozen=True)
class Done:
    """What a command line said and returned."""

    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """`train run` as the console script runs it, in an empty folder."""

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["train", "run", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capfd.readouterr()
        return Done(stop.value.code if isinstance(stop.value.code, int) else 0, said.out, said.err)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHBUILD_DIR", raising=False)
    return call


def test_options_of_run_are_frozen() -> None:
    context = cli.commands["run"].make_context("run", [], resilient_parsing=True)
    found = {name for param in cli.commands["run"].get_params(context) for name in param.opts if name.startswith("--")}
    assert found == OPTIONS


def test_every_field_of_the_configuration_is_an_option() -> None:
    own = {flag(name) for name in field_types() if name not in repeated_by().values()}
    assert own == OPTIONS - {"--cache-dir", "--config", "--help", "--json", "--no-verify", "--overwrite", "--run-dir"}


def test_choice_outside_the_list_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["run", "--objective", "byol"])
    assert result.exit_code == 2
    assert (
        "'byol' is not one of 'xclr', 'simclr', 'supcon', 'clip', 'vicreg', 'barlow', 'simsiam', 'lejepa', 'rank'" in result.output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.toml"], "none.toml: No such file or directory. --config takes a TOML file"),
        (["--objective", "simclr", "--data", "none.parquet"], "none.parquet: nothing there. Check --data"),
        (["--tau", "-1"], "--tau: -1.0 is not more than 0."),
        (["--seed", str(2**70)], "--seed: 1180591620717411303424 is not at least 0 and at most"),
        (["--data", "a.parquet"], "no graph under graphs/."),
    ],
)
def test_error_is_one_line_and_exit_code_one(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_flags_train_and_the_saved_file_repeats_the_run(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "images.parquet", 24)
    write_tiny_graph(tmp_path / "graphs" / "tiny", 24)
    size = ("--image-size", "8", "--batch-size", "8", "--epochs", "1", "--projector-hidden", "8", "--projector-dim", "4")
    small = (*size, "--device", "cpu", "--log-every", "1")
    first = run("--data", "images.parquet", "--id-column", "id", *small)
    assert first.code == 0, first.err
    assert first.out.startswith("runs/xclr-1: xclr, 3 steps, 24 images in")
    again = run("--config", "runs/xclr-1/config.toml", "--run-dir", "again", "--json")
    assert again.code == 0, again.err
    lines = (tmp_path / "runs/xclr-1/metrics.jsonl").read_text().splitlines()
    assert json.loads(again.out)["last"]["loss"] == json.loads(lines[-1])["loss"]


def test_three_hundred_flickr8k_pictures_train_with_their_five_captions(run: Run, tmp_path: Path, shared_data: Path) -> None:
    table = next(pq.ParquetFile(shared_data / "flickr8k" / "flickr8k_96.parquet").iter_batches(300))
    pq.write_table(pa.Table.from_batches([table]), tmp_path / "flickr.parquet")
    files = table.column("file").to_pylist()
    captions = table.column("captions").to_pylist()
    texts = sorted({caption for row in captions for caption in row})
    ids = {text: number for number, text in enumerate(texts)}
    samples = [(file, ids[caption]) for file, row in zip(files, captions, strict=True) for caption in row]
    write_graph(tmp_path / "graph", clustered_vectors(len(texts), 64), texts=texts, samples=samples)
    build_knn(tmp_path / "graph", KnnConfig(k=64))
    arguments = "--graph-dir graph --data flickr.parquet --id-column file --image-size 32 --batch-size 64 --steps 4 --device cpu"
    result = run(*arguments.split(), "--log-every", "1", "--json")
    assert result.code == 0, result.err
    last = json.loads(result.out)["last"]
    assert (last["step"], last["images_seen"]) == (4, 256)
    assert np.isfinite(last["loss"])
    # 64 samples, 64 neighbours of about 1,500 texts: (B - 1) k / (N - 1), and clusters are unevenly large.
    assert 0.5 < last["hit_rate"] < 10
