"""`graphbuild report`: what was measured of a graph, as one HTML file and as metrics.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult:
    """The report that was written."""

    out: Path
    metrics: Path
    warnings: tuple[str, ...]
    bytes: int

    def summary(self) -> str:
        """A few lines for people: warnings first."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, f"{self.out}: {self.bytes / 1e3:,.0f} kB, one file, no network needed; {self.metrics}"])

    def to_json(self) -> dict[str, Any]:
        """The same, for scripts."""
        return {**asdict(self), "out": str(self.out), "metrics": str(self.metrics), "warnings": list(self.warnings)}


def write_report(graph_dir: Path, out: Path | None = None, *, fidelity: bool = True, **options: Any) -> ReportResult:
    """Measure a graph and write report.html, and metrics.json beside it.

    Args:
        graph_dir: A graph with neighbours.
        out: The HTML file; None: report/report.html in the graph directory.
        fidelity: Whether to measure what the stored rows lose of the target, in random batches and in batches of neighbours;
            a partition into chunks is made where it is missing.
        options: Fields of `graphbuild.health.HealthConfig`.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there is nothing to measure.
        SourceError: If a column or file named in the options is not there.
    """
    from graphbuild.report.write import write

    return write(graph_dir, out, options, fidelity=fidelity)
