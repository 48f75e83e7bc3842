"""The graphs of a training run: one, several in one target, or several with a projector each. Nothing here loads torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from graphbuild.errors import OptionError
from graphbuild.store.choices import Mix, Similarity
from graphbuild.store.mixture import share_weights
from train.config.kinds import LOOSE, TARGET, doc

_HEAD = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_-]*)=(?P<graph>.+?)(?::(?P<weight>[^:/\\]*))?")


@dataclass(frozen=True, slots=True)
class Head:
    """One of several projectors on a shared backbone."""

    name: str
    graph_dir: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}={self.graph_dir}:{self.weight!r}"


def parse_head(text: str) -> Head:
    """Read `NAME=GRAPH:weight`; without a weight it is 1.

    Raises:
        OptionError: If it is not of this form, or the weight is not a number above 0.
    """
    found = _HEAD.fullmatch(text)
    if found is None:
        raise OptionError(
            f"--head {text}: write NAME=GRAPH:weight, such as names=graphs/names:0.5; a name is of letters, digits, - and _."
        )
    name, graph, said = found["name"], found["graph"], found["weight"]
    try:
        weight = 1.0 if said is None else float(said)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise OptionError(f"--head {text}: the weight {said!r} is not a number above 0.")
    return Head(name, graph, weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphOptions:
    """Which graphs a run has, and how they go together."""

    graph_dir: str | None = field(
        default=None,
        metadata=doc(
            "The graph directory (default: $GRAPHBUILD_DIR, else the only graph under graphs/); given several times, their targets "
            "are mixed by --graph-weights.",
            LOOSE,
        ),
    )
    more_graphs: tuple[str, ...] = field(
        default=(), metadata=doc("The graphs after the first of --graph-dir.", {**LOOSE, "follows": "graph_dir"})
    )
    graph_weights: str | None = field(
        default=None,
        metadata=doc("Shares of several --graph-dir, such as 0.7,0.3; scaled to sum to 1 (default: all alike).", TARGET),
    )
    graph_mix: Mix = field(
        default="targets",
        metadata=doc("What of several --graph-dir is averaged: their targets, or their similarities before the softmax.", TARGET),
    )
    similarity: Similarity = field(
        default="stored",
        metadata=doc(
            "Which similarities of a graph are the target: those of its vectors, or a cross-encoder's (graphbuild rescore), which "
            "takes --absent.",
            TARGET,
        ),
    )
    head: tuple[str, ...] = field(
        default=(),
        metadata=doc(
            "NAME=GRAPH:weight: a projector for a graph, on the shared backbone; repeatable, losses are summed by weight.",
            TARGET,
        ),
    )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The projectors of --head, in order.

        Raises:
            OptionError: If one is not of the form that it takes.
        """
        return tuple(map(parse_head, self.head))

    @property
    def graphs(self) -> tuple[str, ...]:
        """All graph directories of the run, each once; the first one's samples are the images."""
        named = (self.graph_dir, *self.more_graphs, *(head.graph_dir for head in self.heads))
        return tuple(dict.fromkeys(path for path in named if path is not None))

    @property
    def graph_shares(self) -> tuple[float, ...]:
        """What each --graph-dir has of the target; they sum to 1.

        Raises:
            OptionError: If --graph-weights are not numbers, one a graph, negative, or all zero.
        """
        given = self.graph_weights.split(",") if self.graph_weights else []
        try:
            weights = [float(one) for one in given]
        except ValueError:
            raise OptionError(f"--graph-weights: {self.graph_weights!r} are no numbers, separated by commas.") from None
        return share_weights(weights, 1 + len(self.more_graphs), option="--graph-weights")
