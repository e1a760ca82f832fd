"""Draws what ``benchmarks.training.grid`` wrote: energy saved by straggler, measured beside planned, as SVG.

python -m benchmarks.training.plot_grid grid.json docs/training_stragglers.svg
"""

import json
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, TOP = 640, 260, 56, 34


def drawing(rows: list[dict[str, Any]]) -> str:
    """Bars: measured; dots: planned; below each its iteration time over all-max's."""
    highest = max(max(row["saved"], row["planned_saved"]) for row in rows) * 1.15
    step = (WIDTH - LEFT - 10) / len(rows)

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share / highest)

    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT + 112}' font-family='sans-serif' "
        "font-size='11'>",
        "<rect width='100%' height='100%' fill='white'/>",
        f"<text x='{LEFT}' y='18' font-size='13'>Energy saved against all clocks at their highest</text>",
    ]
    for tenth in range(0, int(highest * 20) + 1):
        parts.append(f"<line x1='{LEFT}' x2='{WIDTH - 10}' y1='{y(tenth / 20)}' y2='{y(tenth / 20)}' stroke='#ddd'/>")
        parts.append(f"<text x='{LEFT - 34}' y='{y(tenth / 20) + 4}'>{tenth * 5} %</text>")
    for number, row in enumerate(rows):
        x, wide = LEFT + number * step + step * 0.2, step * 0.6
        bar = HEIGHT + TOP - y(row["saved"])
        parts.append(
            f"<rect x='{x:.1f}' y='{y(row['saved']):.1f}' width='{wide:.1f}' height='{bar:.1f}' fill='#1a936f'/>"
        )
        parts.append(f"<circle cx='{x + wide / 2:.1f}' cy='{y(row['planned_saved']):.1f}' r='4' fill='#e07a2f'/>")
        name = "none" if row["degree"] == 1 else f"{row['degree']:g}x"
        for line, text in enumerate((name, f"{row['saved']:.1%}", f"time {row['slowdown_ratio']:.4f}")):
            parts.append(f"<text x='{x - 6:.1f}' y='{HEIGHT + TOP + 16 + 14 * line}'>{text}</text>")
    parts.append(
        f"<text x='{LEFT}' y='{HEIGHT + TOP + 68}'>straggler; measured saving (bars); iteration time over all-max's "
        "under the same straggler; orange: the planner's prediction</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(drawing(json.loads(Path(sys.argv[1]).read_text())["rows"]))
