"""The report's charts: what was measured in, charts with captions out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup

from graphbuild.quality.fidelity import Fidelity
from graphbuild.quality.health.result import Health
from graphbuild.system.pages.charts import Axis, Band, Line, chart, legend, linear_axis, log_axis

_RANK_MARKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000)
_TAU_MARKS = (0.02, 0.05, 0.1, 0.2, 0.5)
_LEAST_NATS = 1e-5
"""Where a logarithm of divergences ends."""
_SKETCH_STYLES = {0: "b dashed", 32: "c", 64: "a", 128: "a dashed"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and how to read it."""

    title: str
    legend: Markup
    svg: Markup
    caption: str


def figures(health: Health, fidelity: Fidelity | None) -> tuple[Figure, ...]:
    """Return every chart that the measurements allow."""
    made = [_similarity(health), _in_degrees(health), _components(health)]
    made += [_entropy(health), _own_view(health)] if health.target else []
    return tuple(made + ([_divergence(fidelity)] if fidelity else []))


def _similarity(health: Health) -> Figure:
    entries = health.similarity_by_rank
    ranks = [entry["rank"] for entry in entries]
    column = {name: [entry[name] for entry in entries] for name in ("5%", "25%", "50%", "75%", "95%")}
    random = health.random_similarity
    values = [*column["5%"], *column["95%"], *([random["95%"]] if random else [])]
    lines = [Line("median", "a", ranks, column["50%"])]
    key = [("median; half and nine tenths of the texts", "a")]
    if random:
        lines.append(Line("95 % of random pairs lie below", "b dashed", [ranks[0], ranks[-1]], [random["95%"]] * 2))
        key.append(("95 % of random pairs lie below", "b"))
    bands = [Band("a faint", ranks, column["5%"], column["95%"]), Band("a", ranks, column["25%"], column["75%"])]
    return Figure(
        "Similarity by rank",
        legend(key),
        chart(log_axis("rank", ranks, _RANK_MARKS), linear_axis("similarity", min(values), max(values)), lines=lines, bands=bands),
        "How fast neighbours get less similar. Where the curve meets the dashed line, further ranks are no nearer than chance.",
    )


def _in_degrees(health: Health) -> Figure:
    # Shifted by one, because texts that are nobody's neighbour have a bar, too, and a logarithm has no zero.
    limits = [entry["from"] + 1.0 for entry in health.in_degrees] + [health.in_degrees[-1]["to"] + 1.0]
    shares = {name: [entry[name] / health.texts for entry in health.in_degrees] for name in ("texts", "shuffled")}
    marks = [mark + 1.0 for mark in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 100000)]
    axis = log_axis("rows that hold a text among their first ten", limits, marks)
    axis = replace(axis, ticks=[(mark, f"{mark - 1:,g}") for mark, _ in axis.ticks])
    top = max(*shares["texts"], *shares["shuffled"])
    return Figure(
        "In-degree",
        legend([("texts", "a"), ("shuffled graph", "b")]),
        chart(
            axis,
            linear_axis("share of texts", 0, top, percent=True),
            bars=[Line("texts", "a", limits, shares["texts"]), Line("shuffled graph", "b hollow", limits, shares["shuffled"])],
        ),
        "How often a text is a neighbour; bins widen to the right. A long tail is hubs; a tall first bar, texts near to nobody.",
    )


def _components(health: Health) -> Figure:
    entries = sorted(health.components, key=lambda entry: entry["threshold"])
    at = [entry["threshold"] for entry in entries]
    names = (
        ("texts alone", "alone_share", "a"),
        ("in the largest", "largest_share", "c"),
        ("shuffled", "shuffled_largest_share", "b dashed"),
    )
    lines = [Line(name, style, at, [entry[column] for entry in entries]) for name, column, style in names]
    return Figure(
        "Connected components",
        legend([("texts alone", "a"), ("in the largest component", "c"), ("the same, shuffled", "b")]),
        chart(
            Axis(label="edges at or above", low=at[0], high=1.0, ticks=[(t / 10, f"{t / 10:g}") for t in range(5, 11)]),
            linear_axis("share of texts", 0, 1, percent=True),
            lines=lines,
        ),
        "What holds together if only edges of some similarity count. The threshold for merging duplicates lies right of the rise.",
    )


def _entropy(health: Health) -> Figure:
    taus = [entry["tau_s"] for entry in health.target]
    nats = [entry["entropy"] for entry in health.target]
    return Figure(
        "Entropy of the target",
        legend([(f"nats, batch of {health.config['batch_size']:,}", "a")]),
        chart(log_axis("tau_s", taus, _TAU_MARKS), linear_axis("nats", 0, max(nats)), lines=[Line("entropy", "a", taus, nats)]),
        "Its exponential is the number of positives that an anchor has in effect. 0 is SimCLR; at the top the target is flat.",
    )


def _own_view(health: Health) -> Figure:
    taus = [entry["tau_s"] for entry in health.target]
    mass = [entry["own_view_mass"] for entry in health.target]
    return Figure(
        "Target on the own view",
        legend([("share", "a")]),
        chart(
            log_axis("tau_s", taus, _TAU_MARKS), linear_axis("share", 0, 1, percent=True), lines=[Line("own view", "a", taus, mass)]
        ),
        "The target's share on the other view of the same image. Choose tau_s where it falls, not where it is flat.",
    )


def _divergence(fidelity: Fidelity) -> Figure:
    taus = sorted({choice.tau_s for choice in fidelity.storage})
    tau_s = taus[len(taus) // 2]
    lines = []
    for sketch_dim in sorted({choice.sketch_dim for choice in fidelity.storage}):
        some = [c for c in fidelity.storage if (c.sketch_dim, c.tau_s) == (sketch_dim, tau_s) and c.k]
        name = f"sketch of {sketch_dim} bytes" if sketch_dim else f"none, absent = {fidelity.absent:g}"
        nats = [max(choice.kl_neighbors, _LEAST_NATS) for choice in some]
        lines.append(Line(name, _SKETCH_STYLES[sketch_dim], [choice.k for choice in some], nats))
    every = [value for line in lines for value in line.y]
    return Figure(
        "Fidelity of the target",
        legend([(line.name, line.style) for line in lines]),
        chart(log_axis("neighbours stored", lines[0].x, lines[0].x), log_axis("nats", [min(every), max(every)]), lines=lines),
        f"KL(dense || assembled) in nats at tau_s {tau_s:g}, in batches of neighbours: what is lost by storing less of a text.",
    )
