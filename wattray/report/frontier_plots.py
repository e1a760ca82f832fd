"""The frontier and the iteration before and after as one self-contained HTML page."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from control_plane.simulation.training_pipeline import IterationTimeline, simulate_iteration
from control_plane.training.planner import SolvedJob
from control_plane.training.profile import Choice


def frontier_page(solved: SolvedJob, report: dict[str, Any]) -> str:
    """Frontier plot, then the iteration at all-max clocks and with the plan that the report shows."""
    figures = list(frontier_figures(solved, report).values())
    plots = [
        figure.to_html(full_html=False, include_plotlyjs=False if at else "directory")
        for at, figure in enumerate(figures)
    ]
    return (
        "<!doctype html><html><head><meta charset='utf-8'><title>wattray frontier</title></head>"
        f"<body style='font-family:sans-serif;margin:2em'>{''.join(plots)}</body></html>\n"
    )


def frontier_figures(solved: SolvedJob, report: dict[str, Any]) -> dict[str, go.Figure]:
    """The frontier, and both iterations until the moment that the report's ``shown`` counts to."""
    dag, until_s = solved.dag, report["shown"]["until_s"]
    before = simulate_iteration(dag, [dag.computation(op).all_max for op in range(len(dag))], until_s)
    plan = simulate_iteration(dag, report_choices(solved, report), until_s)
    return {"frontier": frontier_figure(solved, report), "gantt": gantt_figure(before, plan, until_s)}


def frontier_figure(solved: SolvedJob, report: dict[str, Any]) -> go.Figure:
    frontier = solved.frontier
    blocking_w = solved.dag.blocking_power_w
    figure = go.Figure()
    figure.add_scatter(
        x=frontier.time_s,
        y=frontier.effective_j + blocking_w * frontier.time_s,
        mode="lines",
        name=f"lower bound, {frontier.breakpoints} breakpoints",
    )
    figure.add_scatter(
        x=[point["iteration_time_s"] for point in report["points"]],
        y=[point["energy_j"] for point in report["points"]],
        mode="markers",
        name="plans with real clocks",
    )
    figure.add_scatter(
        x=[report["all_max_time_s"]],
        y=[report["all_max_energy_j"]],
        mode="markers",
        marker={"symbol": "x", "size": 11},
        name="all clocks at maximum",
    )
    for time_s, name in ((frontier.t_min_s, "T_min"), (frontier.t_star_s, "T*")):
        figure.add_vline(x=time_s, line_dash="dot", annotation_text=name)
    if "straggler_time_s" in report:
        figure.add_vline(x=report["straggler_time_s"], line_dash="dash", annotation_text="straggler")
    figure.update_layout(
        title="Time–energy frontier of one iteration",
        xaxis_title="iteration time [s]",
        yaxis_title="energy of all stages [J]",
        height=520,
    )
    return figure


def gantt_figure(before: IterationTimeline, after: IterationTimeline, until_s: float) -> go.Figure:
    """Both timelines on one time axis; colour is the clock, hatched is what is no forward computation, gaps
    are waiting at blocking power."""
    titles = [
        f"{name}: {timeline.finish_time_s:.2f} s, {timeline.energy_j:,.0f} J until {until_s:.2f} s, "
        f"{timeline.blocking_j / timeline.energy_j:.0%} of it waiting"
        for name, timeline in (("All clocks at maximum", before), ("With the plan", after))
    ]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, subplot_titles=titles)
    settings = [_level(s.choice) for t in (before, after) for stage in t.stages for s in stage.spans]
    bounds = {"cmin": min(settings), "cmax": max(settings)}
    unit = "MHz" if all(s.choice.freq_mhz for t in (before, after) for stage in t.stages for s in stage.spans) else "W"
    for row, timeline in ((1, before), (2, after)):
        spans = [(stage, span) for stage, line in enumerate(timeline.stages) for span in line.spans]
        figure.add_bar(
            x=[span.end_s - span.start_s for _, span in spans],
            base=[span.start_s for _, span in spans],
            y=[f"stage {stage}" for stage, _ in spans],
            orientation="h",
            marker={
                "color": [_level(span.choice) for _, span in spans],
                "colorscale": "Viridis",
                "showscale": row == 1,
                "colorbar": {"title": unit},
                "line": {"width": 0.4, "color": "white"},
                "pattern": {
                    "shape": ["" if span.task.instruction == "forward" else "/" for _, span in spans],
                    "fgcolor": "white",
                    "fillmode": "overlay",
                },
                **bounds,
            },
            hovertext=[
                f"{span.task}<br>{_level(span.choice)} · {span.energy_j:.1f} J<br>{span.start_s:.4f}–{span.end_s:.4f} s"
                for _, span in spans
            ],
            hoverinfo="text",
            showlegend=False,
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="time [s]", row=2, col=1)
    figure.update_layout(title="One iteration, before and after (hatched: all but forward)", height=760, bargap=0.15)
    return figure


def _level(choice: Choice) -> int:
    return choice.freq_mhz or choice.power_limit_w


def report_choices(solved: SolvedJob, report: dict[str, Any]) -> Sequence[Choice]:
    """The choices of the plan that the report shows."""
    return solved.within(max(report["shown"]["deadline_s"], solved.shortest_s)).choices
