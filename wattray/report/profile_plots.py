"""The plots of `wattray profile show`: power, latencies and capacity by clock, and Table I with its fit."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from control_plane.domain import REQUEST_TYPES, RequestType
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profile_report import CurveRow, TableRow

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")

Measure = tuple[str, Callable[[CurveRow], float | None]]
MEASURES: Sequence[Measure] = (
    ("Power of a replica (W)", lambda row: row.power_w),
    ("TTFT P99 (ms)", lambda row: None if row.ttft_p99_s is None else row.ttft_p99_s * 1e3),
    ("TBT (ms)", lambda row: None if row.tbt_s is None else row.tbt_s * 1e3),
    ("Highest load under the SLO (requests/s)", lambda row: row.max_load_rps),
)


def profile_page(profile: MachineProfile, rows: Sequence[CurveRow], table: Sequence[TableRow]) -> str:
    """One page that needs nothing else: curves by clock with a menu of types, and Table I where it applies."""
    parts = [curve_figure(profile, rows).to_html(full_html=False, include_plotlyjs="directory")]
    if table and profile.energy_table is not None:
        parts.append(table_figure(profile).to_html(full_html=False, include_plotlyjs=False))
    title = f"<title>{escape(profile.name)}</title>"
    head = f"<!doctype html><html><head><meta charset='utf-8'>{title}</head><body style='font-family:sans-serif'>"
    evidence = profile.evidence
    text = f"<h1>{escape(profile.name)}</h1><p>{escape(evidence.era)}<br>{escape(evidence.source)}</p>"
    return head + text + "".join(parts) + "</body></html>\n"


def curve_figure(profile: MachineProfile, rows: Sequence[CurveRow]) -> Any:
    """Four curves by clock, a line per TP, a menu entry per type."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, cols=2, subplot_titles=[name for name, _ in MEASURES])
    owners: list[RequestType] = []
    for kind in REQUEST_TYPES:
        for number, tp in enumerate(profile.tps):
            mine = [row for row in rows if row.request_type == kind and row.shape.tp == tp]
            for place, (_, measure) in enumerate(MEASURES):
                owners.append(kind)
                figure.add_scatter(
                    x=[row.shape.freq_mhz for row in mine],
                    y=[measure(row) for row in mine],
                    name=f"TP{tp} at {mine[0].load_rps:.2f}/s",
                    legendgroup=f"TP{tp}",
                    showlegend=place == 0,
                    visible=kind == REQUEST_TYPES[0],
                    line={"color": COLOURS[number % len(COLOURS)]},
                    mode="lines+markers",
                    row=place // 2 + 1,
                    col=place % 2 + 1,
                )
    buttons = [
        {"label": str(kind), "method": "update", "args": [{"visible": [owner == kind for owner in owners]}]}
        for kind in REQUEST_TYPES
    ]
    figure.update_xaxes(title_text="GPU clock (MHz)")
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0.0, "y": 1.12, "xanchor": "left", "yanchor": "bottom"}],
        height=800,
        title="Request type (menu); power and latencies at half of what each TP carries at its highest clock",
    )
    return figure


def table_figure(profile: MachineProfile) -> Any:
    """Table I's cells and the fit through them, a panel per type."""
    from plotly.subplots import make_subplots

    published = profile.energy_table
    if published is None:
        raise ValueError(f"{profile.name} has no published table")
    figure = make_subplots(rows=3, cols=3, subplot_titles=[str(kind) for kind in REQUEST_TYPES])
    for place, kind in enumerate(REQUEST_TYPES):
        where = {"row": place // 3 + 1, "col": place % 3 + 1}
        for number, tp in enumerate(sorted(published.cells[str(kind)])):
            cells = [cell for cell in published.measured(kind) if cell[0] == tp]
            if not cells:
                continue
            colour = {"color": COLOURS[number % len(COLOURS)]}
            clocks = list(range(cells[0][1], cells[-1][1] + 1, 50))
            common = {"legendgroup": f"TP{tp}", "showlegend": place == 0, **where}
            figure.add_scatter(
                x=[clock for _, clock, _ in cells],
                y=[cell.energy_wh for _, _, cell in cells],
                name=f"TP{tp} measured",
                mode="markers",
                marker=colour,
                **common,
            )
            fitted = [published.fit.energy_wh(kind, tp, clock) for clock in clocks]
            figure.add_scatter(x=clocks, y=fitted, name=f"TP{tp} fit", mode="lines", line=colour, **common)
    figure.update_layout(height=900, title="DynamoLLM Table I (Wh) and the fit, against the clock (MHz)")
    return figure
