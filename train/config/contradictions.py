"""Options that do not go together, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from graphbuild.errors import OptionError
from train.config.kinds import CONTRASTIVE, flag, given_fields
from train.config.options import Objective, TrainOptions


def refuse_contradictions(config: TrainOptions) -> None:
    """Make sure that the options of a run go together; each is within its range.

    Raises:
        OptionError: If they do not.
    """
    _refuse_of_objectives(config)
    _refuse_unread(config)
    _refuse_of_graphs(config)
    if 0 < config.load_size < config.image_size:
        raise OptionError(
            f"--load-size {config.load_size} is smaller than --image-size {config.image_size}. Raise it, or leave it out."
        )
    if config.per_class is not None and config.fraction < 1:
        raise OptionError(f"--per-class {config.per_class} and --fraction {config.fraction:g} are two budgets. Give one of them.")
    if config.lr_scaling != "none" and config.lr is None:
        raise OptionError(f"--lr-scaling {config.lr_scaling} scales a learning rate that is named: add --lr.")
    if config.text_width % 64:
        raise OptionError(f"--text-width {config.text_width} is not a multiple of 64. Take {config.text_width // 64 * 64 or 64}.")
    if config.init is not None and config.model == "small" and not config.init.startswith("run:"):
        raise OptionError("--init is for ResNets, and --model is small. Add --model resnet50, say.")
    if config.teacher != "graph" and not config.uses_graph:
        raise OptionError(f"--teacher {config.teacher} is for --objective xclr, not {config.objective}. Leave it out.")
    if config.batches == "neighbors" and config.chunk > config.batch_size:
        raise OptionError(
            f"--chunk {config.chunk} is more than --batch-size {config.batch_size}. Lower it, or raise the batch size."
        )
    if config.neighbor_ranks is not None:
        from graphbuild.targets.chunks import parse_ranks

        parse_ranks(config.neighbor_ranks)


def _refuse_of_objectives(config: TrainOptions) -> None:
    if config.prior >= 1:
        raise OptionError(f"--prior: {config.prior} is not less than 1: some negatives must be left.")
    most = 2 * config.batch_size - 2
    if config.negatives == "mixed" and max(config.hardest, config.mixtures) > most:
        raise OptionError(
            f"--hardest {config.hardest} and --mixtures {config.mixtures} do not fit --batch-size {config.batch_size}, whose "
            f"anchors have {most} negatives. Lower them, or raise the batch size."
        )
    if config.tau_s == "auto" and (config.own_weight or not config.has_soft_target):
        why = f"--own-weight {config.own_weight:g} sets" if config.own_weight else f"--objective {config.objective} lacks"
        raise OptionError(f"--tau-s auto solves for the own view's share of a graph's target, which {why}. Give a number.")
    if {"target_mass", "target_positives"} <= {name for name, *_ in given_fields(config)}:
        raise OptionError("--target-mass and --target-positives both say what --tau-s auto solves for. Give one of them.")
    if config.target_positives is not None and config.mass_of != "own-view":
        raise OptionError(f"--target-positives asks for no mass, and --mass-of {config.mass_of} does. Leave one of them out.")
    if config.tau == "learned" and config.objective not in CONTRASTIVE:
        instead = "Leave it out: clip learns its own" if config.objective == "clip" else "Give a number"
        raise OptionError(f"--tau learned is for --objective {', '.join(CONTRASTIVE)}, not for {config.objective}. {instead}.")


def _refuse_of_graphs(config: TrainOptions) -> None:
    if config.similarity != "stored":
        if not config.uses_graph:
            raise OptionError(
                f"--similarity {config.similarity} is of a graph's target, which --objective {config.objective} lacks."
            )
        if config.teacher != "graph":
            raise OptionError(f"--similarity {config.similarity} is stored in rows, and --teacher {config.teacher} reads none.")
    if not config.more_graphs and config.graph_weights is not None:
        raise OptionError(f"--graph-weights {config.graph_weights} is for several graphs: give --graph-dir once for each.")
    shares, heads = config.graph_shares, config.heads
    if len(shares) > 1 and not config.uses_graph:
        raise OptionError(f"--objective {config.objective} takes no similarities from a graph. Give --graph-dir once.")
    by_value = "--objective rank" if config.objective == "rank" else "--negatives graph" if config.negatives == "graph" else ""
    if len(shares) > 1 and config.graph_mix == "targets" and by_value:
        raise OptionError(f"{by_value} takes similarities, which a mixture of targets has not. Add --graph-mix similarities.")
    if not heads:
        return
    if len(shares) > 1:
        raise OptionError("--head gives each graph a projector, and several --graph-dir are one target. Give one or the other.")
    if config.objective == "clip" or not (config.uses_graph or _has_classes_by_texts(config)):
        raise OptionError(f"--head gives a graph a projector, and --objective {config.objective} would not look at it. {_HEADED}")
    names = [head.name for head in heads]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"--head {twice[0]}: is given twice. Choose another name for one of them.")


_OBJECTIVES = set(get_args(Objective))
_READ_WITH: Mapping[str, tuple[str, str]] = {
    "dclw_sigma": ("negatives", "decoupled-weighted"),
    "beta": ("negatives", "hard"),
    "prior": ("negatives", "hard"),
    "hardest": ("negatives", "mixed"),
    "mixtures": ("negatives", "mixed"),
    "target_mass": ("tau_s", "auto"),
    "mass_of": ("tau_s", "auto"),
    "target_positives": ("tau_s", "auto"),
}
"""Options that one value of another option alone reads."""


def _refuse_unread(config: TrainOptions) -> None:
    """Refuse what would be read by another objective, or with another option: it was given because it should do something."""
    for name, value, objectives in given_fields(config):
        # Beside supcon, --per-class and --mass-of read the column of the classes.
        if name != "label_column" and set(objectives) <= _OBJECTIVES and config.objective not in objectives:
            raise OptionError(
                f"{flag(name)} {value} is for --objective {', '.join(objectives)}, not for {config.objective}. Leave it out."
            )
        if name in _READ_WITH:
            other, wanted = _READ_WITH[name]
            if getattr(config, other) != wanted:
                raise OptionError(f"{flag(name)} {value} is read with {flag(other)} {wanted} alone. Add that, or leave it out.")


_HEADED = "Take xclr, rank, supcon without --label-column, or add --positives graph or --negatives graph."


def _has_classes_by_texts(config: TrainOptions) -> bool:
    return config.objective == "supcon" and config.label_column is None
