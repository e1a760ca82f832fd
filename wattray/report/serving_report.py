"""The serving half of the report: what was measured, beside what a static pool would have used, as plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import plotly.graph_objects as go

from actors.messages import Decision
from control_plane.domain import InputClass, Slo
from wattray.load_generator import Sent
from wattray.report.moments import Moment

GREEN, GREY, RED, BLUE, ORANGE = "#1a936f", "#8d99ae", "#c1121f", "#3a6ea5", "#e07a2f"
PALETTE = (GREEN, BLUE, ORANGE, "#6a4c93", "#b08968", "#457b9d")


@dataclass(frozen=True, slots=True)
class Baseline:
    """A simulated run on the same requests over the same time."""

    name: str
    energy_j: float
    slo_attainment: float
    replicas: int
    power_w: Sequence[tuple[float, float]]


def power_figure(moments: Sequence[Moment], baselines: Sequence[Baseline]) -> go.Figure:
    """Cluster power from the energy counters (not from spot readings), against the simulated baselines."""
    figure = go.Figure()
    middles = [(a.at_s + b.at_s) / 2 for a, b in pairwise(moments)]
    watts = [(b.energy_j - a.energy_j) / (b.at_s - a.at_s) for a, b in pairwise(moments)]
    figure.add_scatter(
        x=middles, y=[w / 1000 for w in watts], name="wattray, measured", line={"color": GREEN, "width": 3}
    )
    for baseline, colour in zip(baselines, (GREY, BLUE), strict=False):
        smooth = _smoothed(baseline.power_w)
        figure.add_scatter(
            x=[at for at, _ in smooth],
            y=[watt / 1000 for _, watt in smooth],
            name=f"{baseline.name}, simulated",
            line={"color": colour, "dash": "dot" if colour == BLUE else "solid"},
        )
    return _dressed(figure, "Power of the serving GPUs, idle ones too", "kW", zero=True)


def clocks_figure(moments: Sequence[Moment]) -> go.Figure:
    figure = go.Figure()
    names = sorted({name for moment in moments for name in moment.clocks_mhz})
    for number, name in enumerate(names):
        points = [(m.at_s, m.clocks_mhz.get(name)) for m in moments]
        figure.add_scatter(
            x=[at for at, _ in points],
            y=[mhz for _, mhz in points],
            name=name,
            line={"shape": "hv", "color": PALETTE[number % len(PALETTE)]},
        )
    return _dressed(figure, "Highest clock allowed, by replica", "MHz", zero=False)


def replicas_figure(moments: Sequence[Moment]) -> go.Figure:
    figure = go.Figure()
    for number, name in enumerate(sorted({name for moment in moments for name in moment.ready})):
        figure.add_scatter(
            x=[m.at_s for m in moments],
            y=[m.ready.get(name, 0) for m in moments],
            name=name,
            stackgroup="replicas",
            line={"shape": "hv", "color": PALETTE[number % len(PALETTE)]},
        )
    for number, pool in enumerate(sorted({pool for moment in moments for pool in moment.load_rps})):
        figure.add_scatter(
            x=[m.at_s for m in moments],
            y=[m.load_rps.get(pool, 0) for m in moments],
            name=f"{pool}: requests/s",
            line={"dash": "dot", "color": PALETTE[-1 - number]},
        )
    return _dressed(
        figure, "Ready replicas by pool and tensor parallelism, and load", "replicas, requests/s", zero=True
    )


def ttft_figure(sent: Sequence[Sent], slo: Slo) -> go.Figure:
    figure = go.Figure()
    names = {InputClass.SHORT: "short input", InputClass.MEDIUM: "medium input", InputClass.LONG: "long input"}
    for input_class, colour in zip(InputClass, (BLUE, GREEN, ORANGE), strict=True):
        mine = [s for s in sent if s.error is None and InputClass.of(s.request.input_tokens) is input_class]
        figure.add_scatter(
            x=[s.sent_s for s in mine],
            y=[s.ttft_s * 1000 for s in mine],
            mode="markers",
            name=names[input_class],
            marker={"color": colour, "size": 6, "opacity": 0.7},
        )
        _limit(figure, sent, slo.ttft_s(input_class) * 1000, colour)
    figure.update_yaxes(type="log")
    return _dressed(figure, "Time to first token by the client's clock, and its limits", "ms", zero=False)


def tbt_figure(sent: Sequence[Sent], slo: Slo) -> go.Figure:
    mine = [s for s in sent if s.error is None and s.tokens > 1]
    figure = go.Figure()
    figure.add_scatter(
        x=[s.sent_s for s in mine],
        y=[s.mean_tbt_s * 1000 for s in mine],
        mode="markers",
        name="mean time between tokens",
        marker={"color": GREEN, "size": 6, "opacity": 0.7},
    )
    _limit(figure, sent, slo.tbt_s * 1000, RED)
    return _dressed(figure, "Mean time between tokens by the client's clock", "ms", zero=True)


def _limit(figure: go.Figure, sent: Sequence[Sent], limit_ms: float, colour: str) -> None:
    """A dashed line across the replay. (A plotly shape would misplace its label on a logarithmic axis.)"""
    last_s = max((s.sent_s for s in sent), default=1.0)
    name = f"limit {limit_ms:.0f} ms"
    figure.add_scatter(
        x=[0, last_s], y=[limit_ms, limit_ms], mode="lines", name=name, line={"color": colour, "dash": "dash"}
    )


def decisions_table(decisions: Sequence[Decision], began_s: float) -> str:
    rows = "".join(
        f"<tr><td>{max(0.0, d.at_s - began_s):.0f} s</td><td>{escape(d.source)}</td>"
        f"<td>{escape(d.action)}</td><td>{escape(d.why)}</td></tr>"
        for d in decisions
    )
    return f"<table><tr><th>at</th><th>who</th><th>what</th><th>why</th></tr>{rows}</table>"


def _smoothed(points: Sequence[tuple[float, float]], width_s: float = 5.0) -> list[tuple[float, float]]:
    """Means over ``width_s``: a simulated cluster is sampled at moments, a counter is read as a mean."""
    bins: dict[int, list[float]] = {}
    for at_s, watts in points:
        bins.setdefault(int(at_s // width_s), []).append(watts)
    return [((number + 0.5) * width_s, sum(values) / len(values)) for number, values in sorted(bins.items())]


def _dressed(figure: go.Figure, title: str, unit: str, *, zero: bool) -> go.Figure:
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=340,
        margin={"l": 60, "r": 20, "t": 50, "b": 40},
        legend={"orientation": "h", "y": -0.2},
        xaxis_title="seconds since the replay began",
        yaxis_title=unit,
    )
    if zero:
        figure.update_yaxes(rangemode="tozero")
    return figure
