"""How a policy did on a trace: energy, SLO, latencies, per request type too."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import MAX_CLASSED_INPUT_TOKENS, REQUEST_TYPES, Slo
from control_plane.simulation.outcome import Simulated


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
    met = outcome.met(slo)
    kinds = outcome.trace.types()
    groups = {str(kind): kinds == row for row, kind in enumerate(REQUEST_TYPES)}
    by_class = {}
    for row, (name, mine) in enumerate(groups.items()):
        if mine.any():
            gaps = outcome.gaps.percentile_s(0.5, row), outcome.gaps.percentile_s(0.99, row)
            by_class[name] = _class_score(outcome, met, mine, gaps)
    over = outcome.trace.input_tokens > MAX_CLASSED_INPUT_TOKENS
    if over.any():
        by_class[OVER_8192] = _class_score(outcome, met, over, (None, None))
    everyone = _class_score(outcome, met, np.ones(len(kinds), bool), (None, None))
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
        by_class=by_class,
    )


def _class_score(
    outcome: Simulated, met: NDArray[np.bool_], mine: NDArray[np.bool_], gaps: tuple[float | None, float | None]
) -> ClassScore:
    ttft_s, queue_s = outcome.ttft_s[mine], outcome.queue_s[mine]
    energy_j = float(outcome.request_energy_j[mine].sum())
    tokens = int(outcome.trace.input_tokens[mine].sum()) + int(outcome.trace.output_tokens[mine].sum())
    requests = int(mine.sum())
    return ClassScore(
        requests=requests,
        slo_attainment=float(met[mine].mean()) if requests else 1.0,
        ttft_p50_s=_percentile(ttft_s, 50),
        ttft_p99_s=_percentile(ttft_s, 99),
        queue_p50_s=_percentile(queue_s, 50),
        queue_p99_s=_percentile(queue_s, 99),
        tbt_p50_s=gaps[0],
        tbt_p99_s=gaps[1],
        energy_j=energy_j,
        energy_per_request_j=energy_j / max(1, requests),
        energy_per_token_j=energy_j / max(1, tokens),
    )


def _percentile(times_s: NDArray[np.float64], percent: float) -> float:
    """Of those that came: infinite waits belong to lost requests, which are counted as such."""
    came = times_s[np.isfinite(times_s)]
    return float(np.percentile(came, percent)) if len(came) else 0.0
