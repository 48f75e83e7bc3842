"""Every loss of the family on one batch, by one process or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers_ranks import BATCH, TILE, batch_of, net
from torch import Tensor, nn
from torch.nn.functional import normalize

from graphbuild.torch.assembler import GraphTarget
from graphbuild.torch.blocks import Gather
from graphbuild.torch.gather import gather, gather_views
from graphbuild.torch.mixture import mix_targets
from graphbuild.torch.modules import two_view_loss
from graphbuild.torch.order import rank_loss
from graphbuild.torch.repulsion import ByGraph, Decoupled, Hard, Mixed, Repulsion
from graphbuild.torch.soft_targets import SoftTargets
from graphbuild.torch.without_negatives import barlow_loss, draw_directions, lejepa_loss, simsiam_loss, vicreg_loss
from train.run.distributed import ranks_of_job

TEXTS, QUEUED = 40, 6
REPELLED: dict[str, Repulsion] = {
    "decoupled": Decoupled(),
    "decoupled-weighted": Decoupled(0.5),
    "hard": Hard(1.0, 0.05),
    "graph": ByGraph(),
    "mixed": Mixed(6, 4, seed=1),
}
KINDS = [*REPELLED, "queue", "vicreg", "barlow", "simsiam", "lejepa", "rank", "targets", "similarities", "heads"]


def family_loss(kind: str, model: nn.Module, seed: int, targets: SoftTargets, anchors: range, gather_rows: Gather | None) -> Tensor:
    """The loss of some anchors of a batch; the others' embeddings come from the other processes."""
    pictures, ids = batch_of(seed, TEXTS)
    own = pictures.unflatten(0, (2, BATCH))[:, anchors.start : anchors.stop].flatten(0, 1)
    target = targets.of_texts(ids, anchors, gather=gather_rows) if gather_rows else targets.of_texts(ids)
    y = model(own)
    if kind in ("targets", "similarities", "heads"):
        # Other texts of the same samples stand for another graph.
        texts = (7 * ids + 3) % TEXTS
        other = targets.of_texts(texts, anchors, gather=gather_rows) if gather_rows else targets.of_texts(texts)
        return _of_two_graphs(kind, y, target, other)
    place: dict[str, Any] = {"tile": TILE, "tau_s": 0.1}
    if kind in REPELLED:
        return two_view_loss(normalize(y, dim=1), target, tau=0.2, repulsion=REPELLED[kind], **place).loss
    if kind == "queue":
        past = normalize(torch.randn(2 * QUEUED, y.shape[1], generator=torch.Generator().manual_seed(seed), dtype=y.dtype), dim=1)
        spanning = targets.of_texts(torch.cat([ids, (ids[:QUEUED] + 1) % TEXTS]), anchors)
        return two_view_loss(normalize(y, dim=1), spanning, tau=0.2, past_2QD=past, **place).loss
    if kind == "rank":
        return rank_loss(gather_views(normalize(y, dim=1)), target, anchors, tile=TILE, tau=0.2)
    if kind == "simsiam":
        return simsiam_loss(y.tanh(), gather_views(y), target, anchors, **place).loss
    if kind == "lejepa":
        directions = draw_directions(y.shape[1], 6, seed=seed)
        return lejepa_loss(gather_views(y), target, anchors, directions_DM=directions, isotropy=0.3, **place).loss
    return (vicreg_loss if kind == "vicreg" else barlow_loss)(gather_views(y), target, anchors, **place).loss


def _of_two_graphs(kind: str, y: Tensor, one: GraphTarget, other: GraphTarget) -> Tensor:
    settings: dict[str, Any] = {"tile": TILE, "tau_s": 0.1, "tau": 0.2}
    if kind != "heads":
        mixed = mix_targets([one, other], (0.7, 0.3), "targets" if kind == "targets" else "similarities")
        return two_view_loss(normalize(y, dim=1), mixed, **settings).loss
    parts = [two_view_loss(normalize(half, dim=1), target, **settings) for half, target in ((y[:, :3], one), (y[:, 3:], other))]
    return 0.7 * parts[0].loss + 0.3 * parts[1].loss


def family_loss_and_gradients(graph_dir: Path, folder: Path) -> None:
    """Write the loss of the whole batch and the gradients that each process ends with."""
    with ranks_of_job("cpu") as ranks:
        found = {}
        targets = SoftTargets(graph_dir)
        for seed, kind in enumerate(KINDS):
            model = net()
            loss = family_loss(kind, model, seed, targets, ranks.part(BATCH), gather)
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.average_gradients(model, torch.device("cpu"))
            found[kind] = (ranks.mean(loss.detach()), [weight.grad for weight in model.parameters()])
        torch.save(found, folder / f"found-{ranks.rank}.pt")
