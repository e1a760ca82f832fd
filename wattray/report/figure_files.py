"""Every figure of a report as SVG and CSV files, drawn here from its traces: no browser and no network are needed.

Lines, markers, bars, bars that start anywhere, and waterfalls: what the reports use. Panels lie below each other.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from wattray.output_files import write_text

_COLOURS = ("#1f6f8b", "#d1603d", "#5b8c5a", "#7b5ea7", "#c9a227", "#44525f", "#a23b72", "#2e86ab")
_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _BOTTOM = 860.0, 300.0, 90.0, 20.0, 60.0, 60.0


def write_figures(folder: Path, figures: Mapping[str, go.Figure]) -> list[Path]:
    """``NAME.svg`` and ``NAME.csv`` of each figure; returns the files."""
    written = []
    for name, figure in figures.items():
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        for ending, text in ((".svg", figure_svg(figure)), (".csv", figure_csv(figure))):
            written.append(folder / (stem + ending))
            write_text(written[-1], text)
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


def figure_svg(figure: go.Figure) -> str:
    """The figure as one SVG picture."""
    panels: dict[str, list[Any]] = {}
    for trace in figure.data:
        panels.setdefault(getattr(trace, "yaxis", None) or "y", []).append(trace)
    height = _TOP + len(panels) * (_PANEL + _BOTTOM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        'font-family="system-ui,sans-serif" font-size="12">',
        f'<rect width="{_WIDTH:.0f}" height="{height:.0f}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="16" font-weight="600">{_text(figure.layout.title.text)}</text>',
    ]
    subtitles = [note.text for note in figure.layout.annotations or () if note.yref == "paper" and note.xref == "paper"]
    for at, (name, traces) in enumerate(panels.items()):
        number = name.removeprefix("y")
        x_axis, y_axis = figure.layout[f"xaxis{number}"], figure.layout[f"yaxis{number}"]
        titles = (x_axis.title.text, y_axis.title.text, subtitles[at] if at < len(subtitles) else "")
        top = _TOP + at * (_PANEL + _BOTTOM)
        parts += _Panel(traces, top, from_zero=y_axis.rangemode == "tozero").drawn(titles)
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Panel:
    def __init__(self, traces: Sequence[Any], top: float, from_zero: bool) -> None:
        self._traces, self._top = traces, top
        self._sideways = any(getattr(trace, "orientation", None) == "h" for trace in traces)
        points = [_points(trace) for trace in traces]
        along = [(bases if self._sideways else xs, xs) for xs, _, bases in points]
        bars = any(trace.type in ("bar", "waterfall") for trace in traces)
        if self._sideways:
            ends = [x + (b or 0.0) for xs, _, bases in points for x, b in zip(xs, bases, strict=True)]
            self._names = list(dict.fromkeys(y for _, ys, _ in points for y in ys))
            self._x, self._y = _Scale.of(ends, from_zero=True), _Scale(-0.5, len(self._names) - 0.5)
            return
        words = [x for _, xs in along for x in xs if isinstance(x, str)]
        self._names = list(dict.fromkeys(words))
        tops = [value for _, ys, bases in points for y, b in zip(ys, bases, strict=True) for value in _ends(y, b)]
        self._y = _Scale.of(tops, from_zero=bars or from_zero)
        numbers = [x for _, xs in along for x in xs if not isinstance(x, str)]
        self._x = _Scale(-0.6, len(self._names) - 0.4) if self._names else _Scale.of(numbers)

    def drawn(self, titles: tuple[str | None, str | None, str | None]) -> list[str]:
        bottom, right = self._top + _PANEL, _WIDTH - _RIGHT
        x_title, y_title, title = titles
        middle = (_LEFT + right) / 2
        parts = [
            f'<text x="{_LEFT}" y="{self._top - 8:.1f}">{_text(title)}</text>',
            f'<text x="{middle:.1f}" y="{bottom + 44:.1f}" text-anchor="middle">{_text(x_title)}</text>',
            f'<text x="16" y="{self._top - 8:.1f}">{_text(y_title)}</text>',
        ]
        for tick in () if self._sideways else self._y.ticks():
            y = self._up(tick)
            parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8ee"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
        for at, name in enumerate(self._names):
            if self._sideways:
                parts.append(
                    f'<text x="{_LEFT - 6}" y="{self._row(at) + 4:.1f}" text-anchor="end">{_text(name)}</text>'
                )
            else:
                parts.append(
                    f'<text x="{self._across(at):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{_text(name)}</text>'
                )
        for tick in () if self._names and not self._sideways else self._x.ticks():
            x = self._across(tick)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{tick:,.6g}</text>')
        for at, trace in enumerate(self._traces):
            parts += self._series(trace, _COLOURS[at % len(_COLOURS)])
        named = [(trace.name, _COLOURS[at % len(_COLOURS)]) for at, trace in enumerate(self._traces) if trace.name]
        for at, (name, colour) in enumerate(named):
            x, y = right - 200, self._top + 14 + 16 * at
            parts.append(f'<rect x="{x}" y="{y - 9:.1f}" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{x + 16}" y="{y:.1f}">{_text(name)}</text>')
        return parts

    def _series(self, trace: Any, colour: str) -> list[str]:
        xs, ys, bases = _points(trace)
        if self._sideways:
            half = 0.4 * _PANEL / len(self._names)
            return [
                f'<rect x="{self._across(b or 0.0):.2f}" y="{self._row(self._names.index(y)) - half:.2f}" '
                f'width="{self._across((b or 0.0) + x) - self._across(b or 0.0):.2f}" height="{2 * half:.2f}" '
                f'fill="{colour}" stroke="#fff" stroke-width=".4"/>'
                for x, y, b in zip(xs, ys, bases, strict=True)
            ]
        places = [self._across(self._names.index(x) if isinstance(x, str) else x) for x in xs]
        if trace.type in ("bar", "waterfall"):
            half = 0.3 * (self._across(1) - self._across(0))
            boxes = zip(places, ys, bases, strict=True)
            return [
                f'<rect x="{x - half:.1f}" y="{min(self._up(y), self._up(b or 0.0)):.1f}" width="{2 * half:.1f}" '
                f'height="{abs(self._up(y) - self._up(b or 0.0)):.1f}" fill="{colour}"/>'
                for x, y, b in boxes
            ]
        marks = "markers" in (trace.mode or "lines")
        if marks:
            shown = [(x, self._up(y)) for x, y in zip(places, ys, strict=True) if _known(y)]
            return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in shown]
        path, pen = [], "M"
        for x, y in zip(places, ys, strict=True):
            if _known(y):
                path.append(f"{pen}{x:.1f} {self._up(y):.1f}")
            pen = "L" if _known(y) else "M"
        return [f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6"/>']

    def _across(self, x: float) -> float:
        return _LEFT + self._x.share(x) * (_WIDTH - _LEFT - _RIGHT)

    def _up(self, y: float) -> float:
        return self._top + (1 - self._y.share(y)) * _PANEL

    def _row(self, at: int) -> float:
        return self._top + (at + 0.5) * _PANEL / len(self._names)


class _Scale:
    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0

    @classmethod
    def of(cls, values: Sequence[Any], from_zero: bool = False) -> "_Scale":
        known = [float(value) for value in values if _known(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        return cls(min(0.0, low) if from_zero else low, max(0.0, high) if from_zero else high)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
        first = math.ceil(self.low / step)
        return [step * at for at in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _points(trace: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """x, y and base of every point; a waterfall's bars reach from one level to the next."""
    xs, ys = list(trace.x if trace.x is not None else ()), list(trace.y if trace.y is not None else ())
    if trace.type == "waterfall":
        levels, level = [], 0.0
        bases: list[Any] = []
        for measure, y in zip(trace.measure, ys, strict=True):
            bases.append(level if measure == "relative" else 0.0)
            level = level + y if measure == "relative" else (y if measure == "absolute" else level)
            levels.append(level)
        return xs, levels, bases
    base = getattr(trace, "base", None) if trace.type == "bar" else None
    bases = [None] * len(xs) if base is None else list(base)
    return [_plain(x) for x in xs], [_plain(y) for y in ys], [_plain(b) for b in bases]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _ends(y: Any, base: Any) -> tuple[Any, ...]:
    return (y,) if base is None else (y, base)


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _text(text: str | None) -> str:
    return escape((text or "").replace("<br>", " "))
