"""Draws what ``benchmarks.training.grid`` wrote: energy saved by straggler, measured beside planned, as SVG.

python -m benchmarks.training.plot_grid grid.json docs/training_stragglers.svg
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


def drawing(rows: list[dict[str, Any]]) -> Figure:
    """Bars: measured; dots: planned; below each its iteration time over all-max's."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    ax = figure.subplots()
    names = [
        f"{'none' if row['degree'] == 1 else format(row['degree'], 'g') + 'x'}\ntime {row['slowdown_ratio']:.4f}"
        for row in rows
    ]
    bars = ax.bar(names, [row["saved"] for row in rows], 0.6, color="#1a936f", label="measured")
    ax.bar_label(bars, [f"{row['saved']:.1%}" for row in rows], label_type="center", color="white")
    ax.plot(names, [row["planned_saved"] for row in rows], "o", color="#e07a2f", label="the planner's prediction")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("Energy saved against all clocks at their highest", loc="left")
    ax.set_xlabel("straggler, and the iteration's time over all-max's under the same straggler")
    ax.legend(frameon=False)
    return figure


if __name__ == "__main__":
    drawing(json.loads(Path(sys.argv[1]).read_text())["rows"]).savefig(sys.argv[2])
