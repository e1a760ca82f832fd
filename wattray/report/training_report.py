"""The training half of the report: the frontier with the points used, stages over time, energy against full clock."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from train_jobs.run_log import IterationRecord
from train_jobs.training_result import TrainingResult, all_max_of
from wattray.report.page import Card, Section

GREEN, GREY, RED, BLUE, ORANGE = "#1a936f", "#8d99ae", "#c1121f", "#3a6ea5", "#e07a2f"


def training_cards(result: TrainingResult) -> list[Card]:
    """The scoreboard's training figures."""
    saved = 1 - result.energy_j / result.baseline_energy_j
    return [
        Card(f"{saved:.1%}", "training energy saved against full clock (simulated GPUs)"),
        Card(f"{result.slowdown_ratio:.4f}", "iteration time over full clock's, same straggler"),
        Card(str(result.stragglers_handled), "stragglers handled"),
    ]


def training_section(result: TrainingResult) -> Section:
    phases = "; ".join(
        f"{p.name} the straggler {p.iteration_time_s:.3f} s and {p.iteration_energy_j:.0f} J an iteration "
        f"(full clock: {p.all_max_time_s:.3f} s, {p.all_max_energy_j:.0f} J)"
        for p in result.phases
    )
    equal = result.losses_equal_unmanaged
    losses = "" if equal is None else f" Losses equal to an unmanaged run's: {'all' if equal else 'NO'}."
    count, stages = len(result.log.iterations), result.job.schedule.stages
    note = (
        f"Job {result.job.name}: {count} iterations of a {stages}-stage pipeline, really trained on Ray Train, its "
        f"computations charged to simulated GPUs; times are GPU time. {phases}.{losses}"
    )
    return Section("Training", note, [frontier_figure(result), energy_figure(result), stages_figure(result)])


def frontier_figure(result: TrainingResult) -> go.Figure:
    """Least energy by iteration time, what real clocks reach, and the points that were in force."""
    figure = go.Figure()
    frontier = result.frontier
    if frontier is not None:
        times_s = [sample.iteration_time_s for sample in frontier.samples]
        bounds_j = [sample.lower_bound_j for sample in frontier.samples]
        reached_j = [sample.energy_j for sample in frontier.samples]
        figure.add_scatter(x=times_s, y=bounds_j, name="least energy (clocks mixed at will)", line={"color": GREEN})
        figure.add_scatter(
            x=times_s, y=reached_j, name="real clocks", mode="markers", marker={"color": BLUE, "size": 5}
        )
        figure.add_scatter(
            x=[frontier.all_max_time_s],
            y=[frontier.all_max_energy_j],
            name="every clock at its highest",
            mode="markers",
            marker={"color": RED, "size": 12, "symbol": "x"},
        )
    used = result.log.schedules
    figure.add_scatter(
        x=[schedule.planned_time_s for schedule in used],
        y=[schedule.planned_energy_j for schedule in used],
        name="in force",
        mode="markers+text",
        text=["no straggler" if s.degree == 1 else f"straggler {s.degree:g}x" for s in used],
        textposition="top right",
        marker={"color": ORANGE, "size": 13, "symbol": "star"},
    )
    return _dressed(figure, "Time–energy frontier of one iteration", "iteration time, s", "J")


def energy_figure(result: TrainingResult) -> go.Figure:
    """Energy of each iteration, beside the same iteration at full clock."""
    records = result.log.iterations
    ends_s = _ends_s(records)
    figure = go.Figure()
    figure.add_scatter(
        x=ends_s, y=[r.energy_j for r in records], name="under the plan", line={"color": GREEN, "width": 3}
    )
    pipelines = result.job.data_parallel
    full = [all_max_of(record, result.log.schedules, pipelines)[1] for record in records]
    figure.add_scatter(x=ends_s, y=full, name="every clock at its highest", line={"color": GREY})
    slow = [(end_s - r.time_s, end_s) for r, end_s in zip(records, ends_s, strict=True) if r.degree > 1]
    if slow:
        figure.add_vrect(x0=slow[0][0], x1=slow[-1][1], fillcolor=ORANGE, opacity=0.12, annotation_text="straggler")
    figure.update_yaxes(rangemode="tozero")
    return _dressed(figure, "Energy of an iteration, counters of the GPUs", "GPU time, s", "J")


def stages_figure(result: TrainingResult) -> go.Figure:
    """What every stage does within one iteration, before, during and after the straggler, coloured by clock."""
    shown = [record for record in result.log.iterations if record.spans]
    figure = make_subplots(
        rows=max(1, len(shown)), cols=1, shared_xaxes=True, subplot_titles=[_title(r) for r in shown] or None
    )
    for row, record in enumerate(shown, start=1):
        for letter in ("forward", "backward"):
            spans = [span for span in record.spans if span.instruction == letter and span.pipeline == 0]
            figure.add_bar(
                x=[span.end_s - span.begin_s for span in spans],
                base=[span.begin_s for span in spans],
                y=[f"stage {span.stage}" for span in spans],
                orientation="h",
                text=[f"{letter[0].upper()}{span.microbatch}" for span in spans],
                hovertext=[f"{letter} {span.microbatch}: {span.freq_mhz} MHz" for span in spans],
                marker={
                    "color": [span.freq_mhz for span in spans],
                    "coloraxis": "coloraxis",
                    "line": {"color": "white", "width": 1},
                },
                showlegend=False,
                row=row,
                col=1,
            )
    figure.update_layout(
        barmode="overlay",
        coloraxis={"colorscale": "Tealrose", "colorbar": {"title": "MHz"}},
        template="plotly_white",
        height=130 + 120 * max(1, len(shown)),
        margin={"l": 60, "r": 20, "t": 60, "b": 40},
        title="Stages within an iteration (F: forward, B: backward), in GPU time",
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="s", row=max(1, len(shown)), col=1)
    return figure


def _title(record: IterationRecord) -> str:
    clocks = "full clock" if record.planned_degree == 0 else "planned clocks"
    straggler = "no straggler" if record.degree == 1 else f"another pipeline takes {record.degree:g} times as long"
    return f"iteration {record.iteration}: {clocks}, {straggler}"


def _ends_s(records: Sequence[IterationRecord]) -> list[float]:
    ends_s, now_s = [], 0.0
    for record in records:
        now_s += record.time_s
        ends_s.append(now_s)
    return ends_s


def _dressed(figure: go.Figure, title: str, across: str, unit: str) -> go.Figure:
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=340,
        margin={"l": 60, "r": 20, "t": 50, "b": 40},
        legend={"orientation": "h", "y": -0.25},
        xaxis_title=across,
        yaxis_title=unit,
    )
    return figure
