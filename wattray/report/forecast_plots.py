"""The figures of `wattray forecast --backtest`."""

from html import escape

import numpy as np
import plotly.graph_objects as go

from wattray.forecast_backtest import Backtest
from wattray.report.page import Card, Section, page_of


def forecast_page(found: Backtest) -> str:
    """One HTML page."""
    mine = found.scores[found.portfolio]
    cards = [
        Card(f"{mine.wape:.1%}", f"WAPE over {found.horizon} bins; last value {mine.last_wape:.1%}"),
        Card(f"{mine.peak_error:.1%}", f"error of the peak; last value {mine.last_peak_error:.1%}"),
        Card(f"{found.bound.coverage:.1%}", f"of the peaks below the bound, nominal {found.quantile:.0%}"),
    ]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{one.wape:.2%}</td><td>{-one.wape_gain:+.1%}</td><td>{one.peak_error:.2%}</td>"
        f"<td>{-one.peak_gain:+.1%}</td><td>{one.origins:,}</td></tr>"
        for name, one in found.scores.items()
    )
    head = ["predictor", "WAPE", "against last value", "peak error", "against last value", "origins"]
    table = f"<table><tr>{''.join(f'<th>{word}</th>' for word in head)}</tr>{rows}</table>"
    note = f"{len(found.rates):,} bins of {found.bin_s:g} s, {found.horizon} bins ahead. {' '.join(found.missing)}"
    section = Section("Forecasts", note, list(forecast_figures(found).values()), table)
    return page_of("Load forecasts on a trace", "Each forecast sees only what came before it.", cards, [section])


def forecast_figures(found: Backtest) -> dict[str, go.Figure]:
    """By name: the peak and its bound over time, and the predictors' errors."""
    return {"peak": _peak_figure(found), "errors": _errors_figure(found)}


def _peak_figure(found: Backtest) -> go.Figure:
    horizon = found.horizon
    peaks = np.lib.stride_tricks.sliding_window_view(found.rates[1:], horizon).max(axis=1)
    hours = (np.arange(len(found.rates)) + 1) * found.bin_s / 3600
    figure = go.Figure(layout={"title": {"text": f"Highest rate of the next {horizon} bins, requests per second"}})
    figure.add_scatter(x=hours[: len(peaks)], y=peaks, name="came")
    figure.add_scatter(x=hours, y=[one.peak for one in found.said], name="forecast")
    figure.add_scatter(x=hours, y=[one.upper for one in found.said], name=f"upper bound, {found.quantile:.0%}")
    figure.update_xaxes(title_text="hours from the trace's start")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _errors_figure(found: Backtest) -> go.Figure:
    figure = go.Figure(layout={"title": {"text": "Error by the last value's at the same moments"}})
    names = list(found.scores)
    for what, ratios in (
        ("rates (WAPE)", [one.wape / one.last_wape for one in found.scores.values()]),
        ("peak", [one.peak_error / one.last_peak_error for one in found.scores.values()]),
    ):
        figure.add_scatter(x=ratios, y=names, name=what, mode="markers")
    figure.add_vline(x=1.0, line_dash="dot", line_width=1)
    return figure
