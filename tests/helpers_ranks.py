"""Several processes as torchrun would start them, forked from a server that has loaded torch once."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_forked import fork
from torch import Tensor, nn

from graphbuild.store.graph import Graph
from graphbuild.torch.blocks import OneHotTarget, SameClassTarget, Target
from graphbuild.torch.gather import gather, gather_rows
from graphbuild.torch.losses import clip_loss
from graphbuild.torch.modules import two_view_loss
from graphbuild.torch.soft_targets import SoftTargets
from train.run.distributed import ranks_of_job

BATCH, WIDTH, TILE = 24, 5, 4


def run_ranks(count: int, work: Callable[..., None], *arguments: Any, folder: Path, timeout: float = 240) -> list[int]:
    """Exit codes of `work(*arguments)` in each of `count` connected processes; what they say is in `folder`/said-<rank>."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **job} for rank in range(count)]
    processes = [fork(work, *arguments, said=folder / f"said-{rank}", **place) for rank, place in enumerate(places)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert None not in codes, f"some process hung: {codes}"
    return [int(code) for code in codes if code is not None]


def said(folder: Path, rank: int) -> str:
    """What a process wrote to its standard output and error."""
    return "".join((folder / f"said-{rank}.{name}").read_text() for name in ("out", "err"))


def train_cli(*arguments: str) -> None:
    """`train run` as the console script runs it."""
    from train.cli import main

    sys.argv = ["train", "run", *arguments]
    main()


def train_cli_until(rank: int, step: int, number: int, *arguments: str) -> None:
    """`train run` in which one process gets a signal after a step."""
    from train.run import trainer

    train_step = trainer.Trainer._train_step

    def step_and_die(self: trainer.Trainer, *given: Any) -> Any:
        report = train_step(self, *given)
        if self.step == step and self.ranks.rank == rank:
            os.kill(os.getpid(), number)
        return report

    trainer.Trainer._train_step = step_and_die  # type: ignore[method-assign]
    train_cli(*arguments)


def batch_of(seed: int, texts: int) -> tuple[Tensor, Tensor]:
    """Pictures of both views, (2B, 2 WIDTH) float64, and a text for each sample, some of them equal; (B,)."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(2 * BATCH, 2 * WIDTH, generator=generator, dtype=torch.float64)
    ids = np.random.default_rng(seed).integers(0, texts, BATCH).astype(np.int32)
    return pictures, torch.from_numpy(ids)


def net(seed: int = 0) -> nn.Module:
    """Two layers without normalisation, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2 * WIDTH, 16), nn.Tanh(), nn.Linear(16, WIDTH)).double()


def target_of(kind: str, graph: Graph, ids: Tensor, anchors: range) -> Target:
    """G of a batch as a process of a job makes it."""
    if kind in ("simclr", "clip"):
        return OneHotTarget(BATCH, "cpu")
    if kind == "supcon":
        return SameClassTarget(ids % 5)
    special: dict[str, dict[str, Any]] = {"mutual": {"symmetrize": "mutual"}, "mixed": {"own_weight": 0.3, "min_similarity": 0.1}}
    options = special.get(kind, {})
    targets = SoftTargets(graph.path, graph_on_device="yes" if kind == "resident" else "no", **options)
    return targets.of_texts(ids, anchors, gather=gather)


def loss_and_gradients(kinds: list[str], graph_dir: Path, texts: int, folder: Path) -> None:
    """Write the loss of the whole batch and the gradients that each process ends with."""
    with ranks_of_job("cpu") as ranks:
        found = {}
        for seed, kind in enumerate(kinds):
            model = net()
            encode = ranks.wrap(model, torch.device("cpu"))
            pictures, ids = batch_of(seed, texts)
            anchors = ranks.part(BATCH)
            own = pictures.unflatten(0, (2, BATCH))[:, anchors.start : anchors.stop].flatten(0, 1)
            vectors = nn.functional.normalize(encode(own), dim=1)
            target = target_of(kind, Graph.open(graph_dir), ids, anchors)
            if kind == "clip":
                images, texts = (gather_rows(half) for half in vectors.chunk(2))
                loss = clip_loss(images, texts, torch.tensor(10.0), ids, anchors, tile=TILE).loss
            else:
                loss = two_view_loss(vectors, target, tau=0.1, tau_s=0.1, tile=TILE).loss
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.average_gradients(model, torch.device("cpu"))
            gradients = [weight.grad for weight in model.parameters()]
            found[kind] = (ranks.mean(loss.detach()), gradients, target.rows(anchors.start, anchors.stop))
        torch.save(found, folder / f"found-{ranks.rank}.pt")


FOREIGN = ["ids", "positions", "average", "simclr", "supcon", "graph", "mixed", "rank", "vicreg", "barlow", "simsiam", "lejepa"]


def foreign_loss(kind: str, z0: Tensor, z1: Tensor, graph_dir: Path, sample_ids: list[str], part: range) -> Tensor:
    """What a user's loop takes as its loss, of some samples of a batch."""
    import graphbuild.torch as losses

    if kind == "simclr":
        return losses.SimCLRLoss(0.2)(z0, z1)
    if kind == "supcon":
        return losses.SupConLoss(0.2)(z0, z1, torch.arange(part.start, part.stop) % 5)
    targets = SoftTargets(graph_dir, captions="average" if kind == "average" else "draw", seed=3)
    own = sample_ids[part.start : part.stop]
    similarity = targets(targets.positions(own) if kind == "positions" else own, epoch=2)
    if kind == "simsiam":
        return losses.SimSiamLoss()(z0.tanh(), z1.tanh(), z0, z1, similarity)
    family: dict[str, Callable[..., Tensor]] = {
        "graph": losses.XCLRLoss(0.2, negatives=losses.ByGraph()),
        "mixed": losses.XCLRLoss(0.2, negatives=losses.Mixed(6, 4, seed=1)),
        "rank": losses.RankLoss(0.2),
        "vicreg": losses.VICRegLoss(),
        "barlow": losses.BarlowTwinsLoss(),
        "lejepa": losses.LeJEPALoss(0.3, 6),
    }
    return family.get(kind, losses.XCLRLoss(0.2, 0.1))(z0, z1, similarity)


def foreign_loop(graph_dir: Path, sample_ids: list[str], folder: Path) -> None:
    """A user's step under DistributedDataParallel: write the mean loss, and the gradients of each process."""
    with ranks_of_job("cpu") as ranks:
        found = {}
        for seed, kind in enumerate(FOREIGN):
            model = nn.parallel.DistributedDataParallel(net())
            pictures, _ = batch_of(seed, 2)
            part = ranks.part(BATCH)
            z0, z1 = (model(half[part.start : part.stop]) for half in pictures.chunk(2))
            loss = foreign_loss(kind, z0, z1, graph_dir, sample_ids, part)
            loss.backward()  # type: ignore[no-untyped-call]
            found[kind] = (ranks.mean(loss.detach()), [weight.grad for weight in model.parameters()])
        torch.save(found, folder / f"found-{ranks.rank}.pt")
