"""How a policy did on a trace: energy, SLO, latencies, per request type too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import MAX_CLASSED_INPUT_TOKENS, REQUEST_TYPES, Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.simulation.outcome import Sample, Simulated
from control_plane.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One request type, or the inputs over 8192 tokens. Times in seconds, of finished requests; gaps between tokens
    are None for a group that is no type."""

    requests: int
    slo_attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    queue_p50_s: float
    queue_p99_s: float
    tbt_p50_s: float | None
    tbt_p99_s: float | None
    energy_j: float
    energy_per_request_j: float
    energy_per_token_j: float
    """Per token, input and output."""


@dataclass(frozen=True, slots=True)
class Score:
    """A policy's line in the table."""

    energy_j: float
    slo_attainment: float
    lost: int
    ttft_p50_s: float
    ttft_p99_s: float
    tbt_p50_s: float
    tbt_p99_s: float
    gpu_hours: float
    instances_peak: int
    reconfigurations: int
    energy_per_request_j: float
    energy_per_token_j: float
    by_class: Mapping[str, ClassScore]


OVER_8192 = "input>8192"
"""Classed long and included there; counted apart here once more."""


def score(outcome: Simulated, slo: Slo) -> Score:
    """Everything counts: a lost request breaks its SLO, and energy is shared out until it sums to the meter."""
    trace = outcome.trace
    kinds = trace.types()
    present = np.bincount(kinds, minlength=len(REQUEST_TYPES))
    rows = {str(kind): row for row, kind in enumerate(REQUEST_TYPES) if present[row]}
    groups: list[_Group] = [None, *(_of_type(kinds, row) for row in rows.values())]
    over = trace.input_tokens > MAX_CLASSED_INPUT_TOKENS
    if over.any():
        groups.append(lambda: over)
    # A column at a time, and a group of it at a time: a week's columns are large.
    met = _each(outcome.met(slo), groups, _mean)
    ttft_s = _each(outcome.ttft_s, groups, _percentiles)
    queue_s = _each(outcome.queue_s, groups, _percentiles)
    energy_j = _each(outcome.request_energy_j, groups, _sum)
    inputs, outputs = _each(trace.input_tokens, groups, _sum), _each(trace.output_tokens, groups, _sum)
    counts = [len(trace), *(int(present[row]) for row in rows.values()), int(over.sum())]
    gaps = [(outcome.gaps.percentile_s(0.5, row), outcome.gaps.percentile_s(0.99, row)) for row in rows.values()]
    tbt_s: list[tuple[float | None, float | None]] = [(None, None), *gaps, (None, None)]
    everyone, *lines = [
        ClassScore(
            requests=counts[at],
            slo_attainment=met[at],
            ttft_p50_s=ttft_s[at][0],
            ttft_p99_s=ttft_s[at][1],
            queue_p50_s=queue_s[at][0],
            queue_p99_s=queue_s[at][1],
            tbt_p50_s=tbt_s[at][0],
            tbt_p99_s=tbt_s[at][1],
            energy_j=energy_j[at],
            energy_per_request_j=energy_j[at] / max(1, counts[at]),
            energy_per_token_j=energy_j[at] / max(1.0, inputs[at] + outputs[at]),
        )
        for at in range(len(groups))
    ]
    return Score(
        energy_j=outcome.energy_j,
        slo_attainment=everyone.slo_attainment,
        lost=outcome.lost,
        ttft_p50_s=everyone.ttft_p50_s,
        ttft_p99_s=everyone.ttft_p99_s,
        tbt_p50_s=outcome.gaps.percentile_s(0.5),
        tbt_p99_s=outcome.gaps.percentile_s(0.99),
        gpu_hours=outcome.gpu_hours,
        instances_peak=outcome.instances_peak,
        reconfigurations=outcome.reconfigurations,
        energy_per_request_j=everyone.energy_per_request_j,
        energy_per_token_j=everyone.energy_per_token_j,
        by_class=dict(zip([*rows, OVER_8192], lines, strict=False)),
    )


CURVE_BINS = 240


@dataclass(frozen=True, slots=True)
class Curve:
    """A run over time: the cluster as sampled, and the share of requests within their SLO by time of arrival, in
    ``CURVE_BINS`` equal parts of the trace (NaN where none came)."""

    samples: tuple[Sample, ...]
    held: NDArray[np.float64]


def curve(outcome: Simulated, slo: Slo) -> Curve:
    trace = outcome.trace
    borders = np.searchsorted(trace.arrival_ps, curve_edges_s(trace) * PS_PER_S)
    counts = np.diff(borders)
    met = np.concatenate(([0], np.cumsum(outcome.met(slo), dtype=np.int32)))[borders]
    return Curve(outcome.samples, np.divide(np.diff(met), counts, np.full(len(counts), np.nan), where=counts > 0))


def curve_edges_s(trace: Trace) -> NDArray[np.float64]:
    """``CURVE_BINS + 1`` times from the trace's start to its end."""
    return np.linspace(0.0, max(trace.duration_s, 1.0), CURVE_BINS + 1)


_T = TypeVar("_T")
_Group = Callable[[], NDArray[np.bool_]] | None
"""Which requests are counted; None: all."""


def _of_type(kinds: NDArray[np.int8], row: int) -> Callable[[], NDArray[np.bool_]]:
    return lambda: kinds == row


def _each(column: NDArray[Any], groups: Sequence[_Group], of: Callable[[NDArray[Any]], _T]) -> list[_T]:
    return [of(column if group is None else column[group()]) for group in groups]


def _mean(met: NDArray[np.bool_]) -> float:
    return float(met.mean()) if len(met) else 1.0


def _sum(column: NDArray[Any]) -> float:
    return float(column.sum())


def _percentiles(times_s: NDArray[np.float64]) -> tuple[float, float]:
    """p50 and p99 of those that came: infinite waits belong to lost requests, which are counted as such."""
    came = times_s[np.isfinite(times_s)]
    if not len(came):
        return 0.0, 0.0
    half, most = np.percentile(came, [50, 99], overwrite_input=True)
    return float(half), float(most)
