"""Policies side by side as one HTML page: load, GPUs, clocks, power and SLO over time."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from control_plane.hardware.replica_model import PS_PER_S
from control_plane.simulation.comparison import Answer, Question
from control_plane.simulation.monthly import J_PER_KWH
from control_plane.simulation.outcome import Sample
from control_plane.simulation.policies import SINGLE_POOL
from control_plane.simulation.recommendation import fleet_in_words
from control_plane.simulation.scoring import curve_edges_s
from control_plane.simulation.waterfall import Level
from control_plane.text_edges import printable
from wattray.report.page import Card, Section, page_of
from wattray.simulation_results import RESULT_HEAD, result_rows
from wattray.tenant_costs import HEAD, TenantCost, tenant_rows
from wattray.whatif import Prices, by_month, levels, limits_in_words, waterfall_told

Floats = NDArray[np.float64]


MOST_LINES = 3
"""More policies than this have a panel each."""
_POINTS = 4500
"""Of a figure, over all its lines: the page stays small."""


def report_page(
    answer: Answer, question: Question, prices: Prices, source: str = "", tenants: Sequence[TenantCost] = ()
) -> str:
    """One HTML page, readable without a network. ``source`` is the name of the trace."""
    trace = question.trace
    baseline_j = answer.scores[SINGLE_POOL].energy_j
    cards = [_card(answer, name) for name in answer.scores if name not in (SINGLE_POOL, answer.today)]
    cards.append(Card(f"{baseline_j / 3.6e6:,.2f} kWh", f"{SINGLE_POOL}: {answer.baseline_replicas} replicas"))
    cards.append(Card(f"{1 - answer.bound.energy_j / baseline_j:.1%}", "saved at most by any policy (bound)"))
    figures = report_figures(answer, question)
    over_time = Section(
        "Over time",
        "Load and SLO by time of arrival; GPUs, clocks and power as sampled.",
        [figures[name] for name in ("load", "gpus", "clocks", "power", "slo", "in-flight")],
    )
    steps = levels(answer, question)
    saving = Section("Where the saving comes from", "; ".join(waterfall_told(steps)) + ".", [figures["waterfall"]])
    month = Section(
        "A month",
        "30 days like this trace, simulated; peak: highest mean of 15 minutes.",
        html=_month_html(answer, prices),
    )
    side_by_side = Section(
        "Policies side by side",
        "Energy, and the bound. What misses its SLO shows no saving.",
        [figures["energy"]],
        _table(RESULT_HEAD, [cells for cells, _ in result_rows(answer, question.policies)]),
    )
    paid = Section(
        "Tenants",
        "Energy, cost and CO2 of 30 days like this trace, by each tenant's share of the energy.",
        html=_table(HEAD, tenant_rows(list(tenants))),
    )
    by_class = Section("By request type", "Times in ms, energy in joules.", html=_class_table(answer))
    named = f" of {printable(source)}" if source else ""
    title = f"{len(trace):,} requests{named} in {trace.duration_s / 3600:.2f} h on {question.profile.name}"
    made = f"wattray {version('wattray')}, {datetime.now(UTC):%Y-%m-%d}."
    note = (
        f"GPUs that nobody holds: {question.idle.value}. {limits_in_words(question.slo, question.attainment)}. {made}"
    )
    return page_of(
        f"Simulation: {title}",
        note,
        cards,
        [saving, month, *([paid] if tenants else []), over_time, side_by_side, by_class],
    )


def _card(answer: Answer, name: str) -> Card:
    """What a policy saves, only where it holds the SLO."""
    held, fleet = f"SLO held {answer.scores[name].slo_attainment:.2%}", answer.fleets.get(name)
    what = name if fleet is None else f"{name} ({fleet})"
    if not answer.holds(name):
        return Card("SLO missed", f"by {what}: {held}, {answer.attainment:.2%} were asked for")
    return Card(f"{answer.saved_ratio(name):.1%}", f"energy saved by {what}; {held}")


def report_figures(answer: Answer, question: Question) -> dict[str, go.Figure]:
    """Every figure of the report by name."""
    edges = curve_edges_s(question.trace)
    hours = (edges[1:] + edges[:-1]) / 7200
    return {
        "waterfall": _waterfall_figure(levels(answer, question)),
        "load": _load_figure(hours, edges, question),
        "gpus": _sampled("GPUs held", answer, lambda sample: float(sample.gpus)),
        "clocks": _sampled("Mean clock of held GPUs, MHz", answer, lambda sample: sample.mean_freq_mhz),
        "power": _sampled("Power, kW", answer, lambda sample: sample.power_w / 1000),
        "slo": _slo_figure(hours, answer, question.attainment),
        "in-flight": _sampled("Requests in flight", answer, lambda sample: float(sample.in_flight)),
        "energy": _energy_figure(answer),
    }


def _load_figure(hours: Floats, edges: Floats, question: Question) -> go.Figure:
    trace = question.trace
    borders = np.searchsorted(trace.arrival_ps, edges * PS_PER_S)
    counts = np.diff(borders)
    tokens = np.diff(np.concatenate(([0], np.cumsum(trace.input_tokens, dtype=np.int64)))[borders])
    width_s = edges[1] - edges[0]
    figure = _figure("Load")
    figure.add_scatter(x=hours, y=counts / width_s, name="requests per s")
    figure.add_scatter(x=hours, y=tokens / width_s / 1000, name="thousand input tokens per s")
    return figure


def _sampled(title: str, answer: Answer, value: Callable[[Sample], float]) -> go.Figure:
    lines = {}
    for name, curve in answer.curves.items():
        samples = curve.samples[1 :: max(1, len(curve.samples) * len(answer.curves) // _POINTS)]
        lines[name] = np.array([s.at_s / 3600 for s in samples]), np.array([value(s) for s in samples])
    return _lines(title, lines)


def _slo_figure(hours: Floats, answer: Answer, attainment: float) -> go.Figure:
    lines = {name: (hours, np.array(curve.held, dtype=float)) for name, curve in answer.curves.items()}
    return _lines("Share of requests within their SLO", lines, attainment)


def _lines(title: str, lines: Mapping[str, tuple[Floats, Floats]], limit: float | None = None) -> go.Figure:
    """Every policy's line over time; of many a panel each, on equal axes. They start at zero, but for shares that a
    limit is held against."""
    figure = _figure(title)
    apart = len(lines) > MOST_LINES
    if apart:
        figure = _figure(title, make_subplots(len(lines), 1, shared_xaxes=True, subplot_titles=list(lines)))
        figure.update_layout(height=60 + 105 * len(lines), showlegend=False)
        figure.update_annotations(font_size=12, x=0, xanchor="left")
        figure.update_xaxes(title_text="")
        figure.update_xaxes(title_text="hours", row=len(lines))
    most = max((float(np.nanmax(values)) for _, values in lines.values() if np.isfinite(values).any()), default=1.0)
    for row, (name, (at_h, values)) in enumerate(lines.items(), start=1):
        where = {"row": row, "col": 1} if apart else {}
        figure.add_scatter(x=at_h, y=values, name=name, **where)
    if limit is not None:
        figure.add_hline(y=limit, line_dash="dot", line_width=1)
    elif apart:
        figure.update_yaxes(range=[0, 1.05 * most])
    else:
        figure.update_yaxes(rangemode="tozero")
    return figure


def _waterfall_figure(steps: Sequence[Level]) -> go.Figure:
    """Joules from today's fleet down to the policy, in kWh; levels that break the SLO say so."""
    first, *others = steps
    befores = [level.energy_j for level in steps]
    marks = ["" if level.holds else " (SLO missed)" for level in steps]
    figure = _figure("Energy, kWh")
    figure.add_waterfall(
        decreasing={"marker": {"color": "#1a936f"}},
        increasing={"marker": {"color": "#c1121f"}},
        x=[
            f"{first.policy}{marks[0]}",
            *(f"{level.why}:<br>{level.policy}{mark}" for level, mark in zip(others, marks[1:], strict=True)),
            "what is left",
        ],
        measure=["absolute", *("relative" for _ in others), "total"],
        y=[
            first.energy_j / J_PER_KWH,
            *((level.energy_j - before) / J_PER_KWH for before, level in zip(befores, others, strict=False)),
            0,
        ],
    )
    figure.update_xaxes(title_text="")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _month_html(answer: Answer, prices: Prices) -> str:
    rows = [
        (
            _marked(answer, name),
            f"{month.energy_kwh:,.0f}",
            f"{month.peak_kw:,.1f}",
            "" if month.cost is None else f"{month.cost:,.0f}",
            "" if month.co2_kg is None else f"{month.co2_kg:,.0f}",
            fleet_in_words(answer.curves[name].samples, prices.starts_s),
        )
        for name, month in by_month(answer, prices).items()
    ]
    return _table(("policy", "kWh", "peak kW", "cost", "kg CO2", "fleet"), rows)


def _energy_figure(answer: Answer) -> go.Figure:
    names = [*(_marked(answer, name) for name in answer.scores), "bound"]
    energies = [*(score.energy_j / 3.6e6 for score in answer.scores.values()), answer.bound.energy_j / 3.6e6]
    figure = _figure("Energy, kWh")
    figure.add_bar(x=names, y=energies)
    figure.update_xaxes(title_text="")
    return figure


def _marked(answer: Answer, name: str) -> str:
    return name if answer.holds(name) else f"{name} (SLO missed)"


def _class_table(answer: Answer) -> str:
    times_head = ("TTFT p50", "TTFT p99", "queue p99", "TBT p99")
    head = ("policy", "type", "requests", "SLO held", *times_head, "J / request", "J / token")
    rows = []
    for name, score in answer.scores.items():
        for kind, line in score.by_class.items():
            gap = "" if line.tbt_p99_s is None else f"{line.tbt_p99_s * 1000:,.0f}"
            times = [f"{t * 1000:,.0f}" for t in (line.ttft_p50_s, line.ttft_p99_s, line.queue_p99_s)]
            energy = [f"{line.energy_per_request_j:,.0f}", f"{line.energy_per_token_j:.3f}"]
            rows.append((name, kind, f"{line.requests:,}", f"{line.slo_attainment:.2%}", *times, gap, *energy))
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"


def _figure(title: str, figure: go.Figure | None = None) -> go.Figure:
    figure = figure or go.Figure()
    figure.update_layout(title=title, height=320, margin={"l": 50, "r": 20, "t": 50, "b": 40}, template="plotly_white")
    figure.update_xaxes(title_text="hours")
    return figure
