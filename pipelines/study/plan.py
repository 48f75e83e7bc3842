"""The runs of the study: which objective, on which graph, with what else changed, and how often.

Everything that two runs of one data set differ in is spelled here; the rest is `COMMON`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphbuild.errors import OptionError

COMMON: Mapping[str, Any] = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "kl_every": 0,
    "log_every": 50,
    # By the clock alone: 250 steps are a minute here and a second there.
    "checkpoint_minutes": 1.0,
    "checkpoint_every": 1_000_000,
}
"""Of every run."""
PROMPTS, CAPTIONS, SCENES = "prompts", "flickr", "scenes"
SECOND = "second-prompts"
"""Those of `--second-encoder`."""
CONTROL = "+shuffled"
SHARES: Mapping[str, float] = {"flickr": 0.3, "scenes": 0.15}
"""Of the budget, for groups with few pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train; a run is an arm and a seed."""

    name: str
    group: str
    """What `--only` may name, too."""
    objective: str
    graph: str = PROMPTS
    """As `pipelines.study.graphs` names it. SimCLR and SupCon take from it which images there are, and nothing else."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `train run`, where they differ from `COMMON`."""
    seeds: int = 3
    """How many, unless `--seeds` says otherwise."""

    @property
    def share(self) -> float:
        """The part of the budget's images that a run of this arm sees."""
        return SHARES.get(self.group, 1.0)


def _core() -> Iterator[Arm]:
    yield Arm(name="simclr", group="core", objective="simclr")
    yield Arm(name="supcon", group="core", objective="supcon", options={"label_column": "name"})
    yield Arm(name="xclr", group="core", objective="xclr")
    yield Arm(name="xclr-shuffled", group="core", objective="xclr", graph=PROMPTS + CONTROL)


def _graphs() -> Iterator[Arm]:
    # The control of the other kind: what rounding and sketch cost. The graph is complete, so that it should be nothing.
    yield Arm(name="xclr-dense", group="bound", objective="xclr", options={"teacher": "embeddings"})
    # WordNet similarities are spread four times as wide as those of prompts: at 0.2 the target is about as soft as theirs at 0.1.
    for tau_s in (0.1, 0.2):
        for graph, told in (("wordnet", ""), ("wordnet" + CONTROL, "-shuffled")):
            name, options = f"xclr-wordnet{told}-tau_s-{tau_s:g}", {"tau_s": tau_s}
            yield Arm(name=name, group="bound", objective="xclr", graph=graph, options=options, seeds=3 if tau_s > 0.1 else 1)
    for texts in ("names", "definitions", "templates"):
        yield Arm(name=f"xclr-{texts}", group="texts", objective="xclr", graph=texts, seeds=1)
    yield Arm(name="xclr-definitions-shuffled", group="texts", objective="xclr", graph="definitions" + CONTROL, seeds=1)
    for graph, told in (("definitions", ""), ("definitions" + CONTROL, "-shuffled")):
        # Definitions lie further apart than prompts: at 0.1 almost all of the target is on the own class.
        name, options = f"xclr-definitions{told}-tau_s-0.15", {"tau_s": 0.15}
        yield Arm(name=name, group="texts", objective="xclr", graph=graph, options=options)
    for graph, told in ((f"{PROMPTS}+centred", ""), (f"{PROMPTS}+centred-shuffled", "-shuffled")):
        name, options = f"xclr-centred{told}-tau_s-0.15", {"tau_s": 0.15}
        yield Arm(name=name, group="texts", objective="xclr", graph=graph, options=options, seeds=1)


def _sources() -> Iterator[Arm]:
    # Where the paper takes similarities from other than one encoder of texts: another encoder, and nothing at all.
    yield Arm(name="xclr-second-encoder", group="sources", objective="xclr", graph=SECOND, seeds=1)
    yield Arm(name="xclr-random", group="sources", objective="xclr", graph=f"{PROMPTS}+random", seeds=1)


def _temperatures() -> Iterator[Arm]:
    # 0.1 is the core's own.
    for tau_s in (0.05, 0.2):
        for graph, told in ((PROMPTS, ""), (PROMPTS + CONTROL, "-shuffled")):
            name, options = f"xclr{told}-tau_s-{tau_s:g}", {"tau_s": tau_s}
            yield Arm(name=name, group="temperature", objective="xclr", graph=graph, options=options, seeds=1)


def _flickr() -> Iterator[Arm]:
    yield Arm(name="flickr-simclr", group="flickr", objective="simclr", graph=CAPTIONS)
    yield Arm(name="flickr-xclr", group="flickr", objective="xclr", graph=CAPTIONS)
    yield Arm(name="flickr-xclr-shuffled", group="flickr", objective="xclr", graph=CAPTIONS + CONTROL)
    yield Arm(name="flickr-clip", group="flickr", objective="clip", graph=CAPTIONS)
    neighbors = {"batches": "neighbors"}
    yield Arm(name="flickr-xclr-neighbors", group="flickr", objective="xclr", graph=CAPTIONS, options=neighbors)


def _scenes() -> Iterator[Arm]:
    yield Arm(name="scenes-simclr", group="scenes", objective="simclr", graph=SCENES)
    yield Arm(name="scenes-supcon", group="scenes", objective="supcon", graph=SCENES, options={"label_column": "object"})
    yield Arm(name="scenes-xclr", group="scenes", objective="xclr", graph=SCENES)


ARMS: tuple[Arm, ...] = (*_core(), *_graphs(), *_sources(), *_temperatures(), *_flickr(), *_scenes())


def controls() -> list[tuple[Arm, Arm]]:
    """Return each arm on a shuffled graph, after the arm on the graph that was shuffled: what they differ by is not softness."""
    pairs = []
    for control in ARMS:
        if control.graph.endswith("shuffled"):
            true = control.graph.removesuffix("shuffled").rstrip("+-")
            same = [arm for arm in ARMS if (arm.graph, arm.objective, arm.options) == (true, control.objective, control.options)]
            pairs += [(arm, control) for arm in same]
    return pairs


@dataclass(frozen=True, slots=True)
class Planned:
    """An arm and a seed: one run of the study."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.arm.name}/seed-{self.seed}"


def plan(only: Sequence[str], seeds: int | None, *, second: bool = False) -> list[Planned]:
    """Return the runs in the order in which they are made: all arms of a group with one seed before the next seed.

    Args:
        only: Names of arms or groups; empty: all.
        seeds: Seeds of every arm; None: each arm's own number.
        second: Whether there is a second encoder; without one its arm is left out.

    Raises:
        OptionError: If a name is unknown, or that of the arm that is left out.
    """
    known = list(dict.fromkeys([*(arm.group for arm in ARMS), *(arm.name for arm in ARMS)]))
    for name in only:
        if name not in known:
            raise OptionError(f"--only {name}: no such arm or group. There are: {', '.join(known)}.")
    chosen = [arm for arm in ARMS if not only or arm.name in only or arm.group in only]
    if not second:
        for arm in chosen:
            if arm.graph == SECOND and arm.name in only:
                raise OptionError(f"--only {arm.name}: name the encoder of its prompts with --second-encoder.")
        chosen = [arm for arm in chosen if arm.graph != SECOND]
    groups = dict.fromkeys(arm.group for arm in chosen)
    most = max((seeds or arm.seeds for arm in chosen), default=0)
    return [
        Planned(arm, seed)
        for group in groups
        for seed in range(most)
        for arm in chosen
        if arm.group == group and seed < (seeds or arm.seeds)
    ]
