"""How large a static fleet must be: the fewest replicas that hold the SLO on a trace, found by simulating it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from control_plane.domain import Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.trace import Trace, excerpt

Watch = Callable[[float, int, RequestColumns], bool]


class SloUnreachableError(ValueError):
    """No number of replicas holds the SLO on this trace."""


class LateCount:
    """Counts first tokens that are late for sure, and says stop once a run can no longer hold the SLO."""

    def __init__(self, trace: Trace, slo: Slo, attainment: float) -> None:
        limits = np.array([slo.ttft_short_s, slo.ttft_medium_s, slo.ttft_long_s])
        self._trace = trace
        self._limit_ps = (limits * PS_PER_S).astype(np.int64)
        self._kinds = trace.types()
        self._settled = 0
        self._late = 0
        self._allowed = int(np.floor((1 - attainment) * len(trace) + 1e-9))

    def __call__(self, now_s: float, arrived: int, columns: RequestColumns) -> bool:
        decided_ps = round(now_s * PS_PER_S) - int(self._limit_ps.max())
        until = min(arrived, int(np.searchsorted(self._trace.arrival_ps, decided_ps)))
        if until > self._settled:
            part = slice(self._settled, until)
            first = np.frombuffer(columns.first_token_ps, np.int64)[part]
            waited = first - self._trace.arrival_ps[part]
            late = (first == NOT_YET) | (waited > self._limit_ps[self._kinds[part] // 3])
            self._late += int(late.sum())
            self._settled = until
        return self._late <= self._allowed


@dataclass(frozen=True, slots=True)
class Sizing:
    """The fewest replicas, their run, and how many runs of the whole trace it took to find them."""

    replicas: int
    outcome: Simulated
    runs: int


Run = Callable[[Trace, int, Watch], Simulated]
"""Simulates so many replicas on a trace, stopping where the watch says so."""

EXCERPT_REQUESTS = 400_000
"""Long enough to tell one fleet from the next, short against a week."""
EXCERPT_WINDOW_S = 300.0
"""Requests stay for seconds: hardly any meets the seam between two windows."""


def fewest_replicas(trace: Trace, tables: ShapeTables, slo: Slo, run: Run, attainment: float = 0.99) -> Sizing:
    """Brackets from a guess, so that no fleet plays the trace twice: from what the busiest five minutes need, or, for
    a long trace, from what an excerpt needs. Raises SloUnreachableError where more replicas no longer help."""
    refuse_what_no_replica_holds(trace, tables, slo, attainment)
    guess, most = _first_guess(trace, tables), 2 * len(trace)
    one_in = len(trace) // EXCERPT_REQUESTS
    if one_in >= 4:
        part = excerpt_one_in(trace, one_in)
        found = _bracket(part, slo, run, attainment, guess, 4 * guess)
        guess = guess if found is None else found.replicas
    sizing = _bracket(trace, slo, run, attainment, guess, most)
    if sizing is None:
        raise SloUnreachableError(f"even {most} replicas do not hold the SLO for {attainment:.1%}")
    return sizing


def excerpt_one_in(trace: Trace, one_in: int) -> Trace:
    """Of a trace one window in so many."""
    return excerpt(trace, min(EXCERPT_WINDOW_S, trace.duration_s / one_in / 24), one_in)


def _bracket(trace: Trace, slo: Slo, run: Run, attainment: float, first: int, most: int) -> Sizing | None:
    """None where ``most`` replicas are too few."""
    fails, replicas, step, runs = 0, first, 1, 0
    best: tuple[int, Simulated] | None = None
    while True:
        outcome = run(trace, replicas, LateCount(trace, slo, attainment))
        runs += 1
        if outcome.complete and outcome.slo_attainment(slo) >= attainment:
            best = replicas, outcome
        else:
            fails = replicas
        del outcome  # two runs of a week are all that memory holds
        if best is None:
            if fails >= most:
                return None
            replicas, step = min(most, fails + step), step * 2
        elif best[0] - fails == 1:
            return Sizing(*best, runs)
        elif fails == 0:
            replicas, step = max(1, best[0] - step), step * 2
        else:
            replicas = (fails + best[0]) // 2


def refuse_what_no_replica_holds(trace: Trace, tables: ShapeTables, slo: Slo, attainment: float) -> None:
    """Raises SloUnreachableError where too many requests would be late even alone on a replica."""
    top = tables.gpu.max_freq_mhz
    alpha_ps, most = np.array(tables.alpha_ps(top)), tables.limits.batch_tokens
    inputs = trace.input_tokens.astype(np.int64)
    full, rest = inputs // most, inputs % most
    alone_ps = full * alpha_ps[most] + np.where(rest > 0, alpha_ps[rest], 0)
    alone_ps = alone_ps + tables.attention_ps(top) * (inputs * (inputs + 1) // 2)
    limits = np.array([slo.ttft_short_s, slo.ttft_medium_s, slo.ttft_long_s]) * PS_PER_S
    total = inputs + trace.output_tokens
    late = (alone_ps > limits[trace.types() // 3]) | (total > tables.limits.kv_tokens)
    if late.mean() > 1 - attainment:
        raise SloUnreachableError(
            f"{late.mean():.1%} of the requests break their SLO even alone on a TP{tables.tp} replica at {top} MHz; "
            f"the SLO is to hold for {attainment:.1%}"
        )


def _first_guess(trace: Trace, tables: ShapeTables) -> int:
    """Replicas at three quarters of their time in the busiest five minutes: prefill, and decoding in full batches."""
    top = tables.gpu.max_freq_mhz
    alpha_ps = tables.alpha_ps(top)
    token_s = (alpha_ps[tables.limits.batch_tokens] - alpha_ps[0]) / tables.limits.batch_tokens / PS_PER_S
    batch = 64
    decode_s = alpha_ps[batch] / batch / PS_PER_S
    work_s = trace.input_tokens * token_s + trace.output_tokens * decode_s
    bins = (trace.arrival_ps // (300 * PS_PER_S)).astype(np.int64)
    span_s = min(300.0, max(1.0, trace.duration_s))
    return max(1, round(float(np.bincount(bins, work_s).max()) / span_s / 0.75))
