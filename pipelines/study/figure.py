"""What each graph is ahead of its own control, drawn: a row a graph, a panel a measure, 95 % intervals as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from train.results.compare.differences import Difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = {"superclass_p10": "superclass P@10", "linear_top1": "linear probe", "few_shot_logistic_5": "5-shot, held-out classes"}
_ROW_INCHES, _EDGE_INCHES, _WIDTH_INCHES = 0.27, 0.85, 7.2


def draw_gaps(gaps: Mapping[str, Mapping[str, Difference]]) -> Figure:
    """Draw differences from the control: coloured where they are told apart, hollow where a single run tells nothing.

    Args:
        gaps: By arm, then by measure; arms from top to bottom.
    """
    # Loaded here: a second of import that only figures need.
    from matplotlib.figure import Figure

    names: Sequence[str] = list(gaps)
    figure = Figure(figsize=(_WIDTH_INCHES, _EDGE_INCHES + _ROW_INCHES * len(names)), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        axes.axvline(0, color="0.6", linewidth=0.8)
        for row, name in enumerate(names):
            if measure in gaps[name]:
                found = gaps[name][measure]
                # Hollow: a single run, of whose spread nothing is known.
                face = "white" if found.half is None else "C0" if found.significant else "0.6"
                edge = "0.6" if not found.significant else "C0"
                half = 0.0 if found.half is None else found.half
                axes.errorbar(
                    100 * found.mean, row, xerr=100 * half, fmt="o", markersize=4.5, color=edge, markerfacecolor=face, linewidth=1.6
                )
        axes.set_title(title, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.tick_params(axis="x", labelsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    # Shared: what turns one panel round turns all.
    figure.axes[0].invert_yaxis()
    figure.supxlabel("points ahead of the same weights between other texts", fontsize="small")
    return figure
