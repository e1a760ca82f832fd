"""Every figure of a report as SVG, PDF and CSV files. matplotlib draws them: no browser and no network are needed."""

import csv
import io
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wattray.output_files import write_bytes, write_text

MOST_TALL = 3
"""More panels than this are low ones."""
_DASHES = {"dot": ":", "dash": "--"}
_MARKERS = {"x": "x"}
# Text stays text, so that it can be searched and edited; the same figure gives the same bytes.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wattray",
    "pdf.fonttype": 42,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e2e8ee",
}
_UNDATED: Mapping[str, Mapping[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def write_figures(folder: Path, figures: Mapping[str, go.Figure]) -> list[Path]:
    """``NAME.svg``, ``NAME.pdf`` and ``NAME.csv`` of each figure; returns the files."""
    written = []
    for name, figure in figures.items():
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        for ending in ("svg", "pdf"):
            written.append(folder / f"{stem}.{ending}")
            write_bytes(written[-1], figure_picture(figure, ending))
        written.append(folder / f"{stem}.csv")
        write_text(written[-1], figure_csv(figure))
    return written


def figure_csv(figure: go.Figure) -> str:
    """A row per point: series, x, y and, for bars that do not start at the axis, base."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("series", "x", "y", "base"))
    for trace in figure.data:
        xs, ys, bases = _points(trace)
        for x, y, base in zip(xs, ys, bases, strict=True):
            rows.writerow((trace.name or "", *(_cell(value) for value in (x, y, base))))
    return out.getvalue()


def _cell(value: Any) -> Any:
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else str(value).replace("<br>", " ")


def figure_picture(figure: go.Figure, ending: str) -> bytes:
    """The figure as ``svg`` or ``pdf``. Series are named by ``id`` in the SVG."""
    with mpl.rc_context(_STYLE):
        drawn, out = _drawn(figure), io.BytesIO()
        drawn.savefig(out, format=ending, metadata=dict(_UNDATED[ending]))
    return out.getvalue()


def _drawn(figure: go.Figure) -> Figure:
    """Panels lie below each other."""
    panels: dict[str, list[Any]] = {}
    for trace in figure.data:
        panels.setdefault(getattr(trace, "yaxis", None) or "y", []).append(trace)
    panel_in = 3.2 if len(panels) <= MOST_TALL else 1.5
    drawn = Figure(figsize=(8.6, 0.6 + panel_in * len(panels)), layout="constrained")
    drawn.suptitle(figure.layout.title.text or "", x=0.02, ha="left", fontweight="bold")
    subtitles = [note.text for note in figure.layout.annotations if note.yref == "paper" and note.xref == "paper"]
    one_time_axis = any(axis.matches for axis in figure.select_xaxes())
    places = drawn.subplots(len(panels), squeeze=False, sharex=one_time_axis)[:, 0]
    for at, (ax, (name, traces)) in enumerate(zip(places, panels.items(), strict=True)):
        _draw_panel(ax, traces)
        number = name.removeprefix("y")
        x_axis, y_axis = figure.layout[f"xaxis{number}"], figure.layout[f"yaxis{number}"]
        ax.set_xlabel(x_axis.title.text or "")
        ax.set_ylabel(y_axis.title.text or "")
        ax.set_title(subtitles[at] if at < len(subtitles) else "", loc="left", fontsize="medium")
        if y_axis.range:
            ax.set_ylim(*y_axis.range)
        elif y_axis.rangemode == "tozero":
            ax.set_ylim(bottom=0.0)
        if y_axis.autorange == "reversed":
            ax.invert_yaxis()
        _draw_marks(ax, figure, name)
        if figure.layout.showlegend is not False and any(trace.name for trace in traces):
            ax.legend(frameon=False)
    return drawn


def _draw_panel(ax: Axes, traces: list[Any]) -> None:
    for trace in traces:
        xs, ys, bases = _points(trace)
        shown = [_shown(x) for x in xs]
        if trace.type == "scatter":
            lines = "lines" in (trace.mode or "lines")
            marker = _MARKERS.get(trace.marker.symbol or "", "o") if "markers" in (trace.mode or "") else ""
            heights = [math.nan if y is None else y for y in ys]
            style = "-" if lines else "none"
            [line] = ax.plot(shown, heights, linestyle=style, marker=marker, markersize=4, label=trace.name)
            line.set_gid(trace.name)
            ax.grid(axis="y")
        elif getattr(trace, "orientation", None) == "h":
            lefts = [base or 0.0 for base in bases]
            bars = ax.barh([_shown(y) for y in ys], xs, 0.8, left=lefts, color=_colours(ax, trace), ec="w", lw=0.4)
            for bar, hatch in zip(bars, trace.marker.pattern.shape or (), strict=False):
                bar.set_hatch(hatch * 3)
        else:
            bottoms = [base or 0.0 for base in bases]
            tops = [y - bottom for y, bottom in zip(ys, bottoms, strict=True)]
            ax.bar(shown, tops, 0.6, bottom=bottoms, label=trace.name)
            ax.grid(axis="y")


def _colours(ax: Axes, trace: Any) -> Any:
    """Of each bar, with the scale beside the panel; None for the usual colour."""
    values = trace.marker.color
    if values is None or isinstance(values, str):
        return values
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(trace.marker.cmin, trace.marker.cmax), "viridis")
    if trace.marker.showscale:
        ax.figure.colorbar(scale, ax=ax, label=trace.marker.colorbar.title.text or "")
    return scale.to_rgba(np.asarray(values, dtype=float))


def _draw_marks(ax: Axes, figure: go.Figure, panel: str) -> None:
    """Straight lines across a panel, with the words that stand at them."""
    for line in figure.layout.shapes:
        style: Any = {"color": "#44525f", "linewidth": 1.0, "linestyle": _DASHES.get(line.line.dash or "", "-")}
        if line.yref == f"{panel} domain" and line.x0 == line.x1:
            ax.axvline(line.x0, **style)
        elif line.yref == panel and line.y0 == line.y1:
            ax.axhline(line.y0, **style)
    for note in figure.layout.annotations:
        if note.yref == f"{panel} domain":
            ax.text(note.x, note.y, f" {note.text}", transform=ax.get_xaxis_transform(), va="top")


def _points(trace: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """x, y and base of every point; a waterfall's bars reach from one level to the next."""
    xs, ys = _values(trace.x), _values(trace.y)
    if trace.type == "waterfall":
        levels = list(
            accumulate(
                zip(trace.measure, ys, strict=True),
                lambda level, step: {"relative": level + step[1], "absolute": step[1], "total": level}[step[0]],
                initial=0.0,
            )
        )
        bases = [before if how == "relative" else 0.0 for how, before in zip(trace.measure, levels, strict=False)]
        return xs, levels[1:], bases
    base = trace.base if trace.type == "bar" else None
    return xs, ys, [None] * len(xs) if base is None else _values(base)


def _values(values: Any) -> list[Any]:
    return [] if values is None else np.asarray(values).tolist()


def _shown(value: Any) -> Any:
    return value.replace("<br>", "\n") if isinstance(value, str) else value
