"""Replicas as a policy's controllers see them: the counts always, the rest only where the policy needs it."""

import numpy as np

from control_plane.domain import InputClass, PoolName, ReplicaView, Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.serving.policy import Needs
from control_plane.simulation.cluster.replicas import Hosted, Replicas
from control_plane.simulation.trace import Trace

LATENCIES_OVER_S = 60.0
CAME_WITHIN_S = 600.0
"""Latencies are those of requests that came in this time: a request that is older when it ends is not counted."""


class ReplicaViews:
    """``ReplicaView`` of every replica; what ``needs`` does not ask for stays None."""

    def __init__(self, needs: Needs, slo: Slo, trace: Trace, columns: RequestColumns, replicas: Replicas) -> None:
        self._needs, self._slo, self._replicas, self._columns = needs, slo, replicas, columns
        self._arrivals, self._inputs = trace.arrival_ps, trace.input_tokens
        self._outputs = trace.output_tokens
        self._metered: dict[int, tuple[int, float]] = {}
        """By replica: when its power was asked for last, and its energy then in watt-picoseconds."""

    def at(self, now_ps: int) -> list[tuple[PoolName, ReplicaView]]:
        latencies = self._latencies(now_ps) if self._needs.latencies else {}
        return [(h.pool, self._view(h, now_ps, latencies.get(h.number, (None, None)))) for h in self._replicas]

    def _view(self, hosted: Hosted, now_ps: int, latencies: tuple[float | None, float | None]) -> ReplicaView:
        engine, needs = hosted.engine, self._needs
        queued, slack_s = self._queue(hosted, now_ps) if needs.queued_tokens else (None, None)
        return ReplicaView(
            hosted.replica_id,
            hosted.tp,
            engine.freq_mhz(now_ps),
            hosted.state,
            engine.waiting,
            engine.running,
            engine.oldest_wait_ps(now_ps) / PS_PER_S,
            hosted.role,
            engine.kv_used_tokens(now_ps) / hosted.kv_tokens if needs.kv_use else None,
            queued,
            slack_s,
            self._power_w(hosted, now_ps) if needs.power else None,
            *latencies,
        )

    def _queue(self, hosted: Hosted, now_ps: int) -> tuple[int, float | None]:
        """Prompt tokens that wait, and the time left until the first TTFT limit among them."""
        tokens, tightest_s = 0, None
        for position, left in hosted.engine.queued():
            tokens += left
            limit_s = self._slo.ttft_s(InputClass.of(int(self._inputs[position])))
            slack_s = (int(self._arrivals[position]) - now_ps) / PS_PER_S + limit_s
            tightest_s = slack_s if tightest_s is None else min(tightest_s, slack_s)
        return tokens, tightest_s

    def _power_w(self, hosted: Hosted, now_ps: int) -> float | None:
        """Mean power since it was asked for last, or since the replica was born."""
        since_ps, then_wps = self._metered.get(hosted.number, (hosted.engine.born_ps, 0.0))
        energy_wps = hosted.engine.energy_wps(now_ps)
        self._metered[hosted.number] = now_ps, energy_wps
        return (energy_wps - then_wps) / (now_ps - since_ps) if now_ps > since_ps else None

    def _latencies(self, now_ps: int) -> dict[int, tuple[float | None, float | None]]:
        """By replica: P99 of the TTFTs and of the mean gaps between tokens that the last minute brought."""
        first = int(np.searchsorted(self._arrivals, now_ps - round(CAME_WITHIN_S * PS_PER_S)))
        last = int(np.searchsorted(self._arrivals, now_ps, "right"))
        came = slice(first, last)
        columns = self._columns
        number = np.array(columns.replica[came])
        first_ps, finished_ps = np.array(columns.first_token_ps[came]), np.array(columns.finished_ps[came])
        gaps = np.maximum(self._outputs[came] - 1, 1)
        since_ps = now_ps - round(LATENCIES_OVER_S * PS_PER_S)
        ttft_s = (first_ps - self._arrivals[came]) / PS_PER_S
        tbt_s = (finished_ps - first_ps) / gaps / PS_PER_S
        answered = (first_ps > max(since_ps, NOT_YET)) & (first_ps <= now_ps)
        ended = (finished_ps > max(since_ps, NOT_YET)) & (finished_ps <= now_ps) & (self._outputs[came] > 1)
        found = {}
        for hosted in self._replicas:
            mine = number == hosted.number
            found[hosted.number] = tuple(_p99(values) for values in (ttft_s[mine & answered], tbt_s[mine & ended]))
        return {number: (ttft, tbt) for number, (ttft, tbt) in found.items()}


def _p99(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float | None:
    return float(np.quantile(values, 0.99)) if len(values) else None
