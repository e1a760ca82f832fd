"""What a simulated run brought: every request, the energy of every GPU, and how well the SLO was held."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from control_plane.actions import Action
from control_plane.domain import PoolName, ReplicaId, Request, Slo
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What became of a request; times in seconds, ``mean_tbt_s`` 0 for a single token."""

    request: Request
    pool: PoolName
    replica_id: ReplicaId
    ttft_s: float
    finished_s: float

    @property
    def mean_tbt_s(self) -> float:
        gaps = self.request.output_tokens - 1
        return 0.0 if gaps == 0 else (self.finished_s - self.request.arrival_s - self.ttft_s) / gaps


@dataclass(frozen=True, slots=True)
class Sample:
    """The cluster at one moment; ``power_w`` is the mean since the sample before, ``energy_j`` the meter's reading.
    The last sample is taken at the run's end, so the samples hold all its energy."""

    at_s: float
    power_w: float
    energy_j: float
    gpus: int
    replicas: int
    mean_freq_mhz: float
    in_flight: int


@dataclass(frozen=True, eq=False)
class Simulated:
    """Outcome of a run. Columns are by position in the trace; energy covers every GPU, the idle ones as billed."""

    trace: Trace
    columns: RequestColumns
    replicas: tuple[tuple[PoolName, ReplicaId], ...]
    gaps: GapHistogram
    lost: int
    complete: bool
    """False where the run was stopped early."""
    energy_j: float
    idle_gpu_energy_j: float
    ends_s: float
    gpu_hours: float
    """GPU time held by replicas."""
    instances_peak: int
    reconfigurations: int
    samples: tuple[Sample, ...] = ()
    decisions: tuple[tuple[float, Action], ...] = ()

    def __eq__(self, other: object) -> bool:
        """What happened to every request, every decision and the energy are the same."""
        if not isinstance(other, Simulated):
            return NotImplemented
        mine, theirs = self.columns, other.columns
        return (
            (mine.started_ps, mine.first_token_ps, mine.finished_ps, mine.replica, mine.energy_wps)
            == (theirs.started_ps, theirs.first_token_ps, theirs.finished_ps, theirs.replica, theirs.energy_wps)
            and (self.replicas, self.decisions, self.samples) == (other.replicas, other.decisions, other.samples)
            and (self.energy_j, self.ends_s, self.lost) == (other.energy_j, other.ends_s, other.lost)
        )

    __hash__ = None  # type: ignore[assignment]

    # The columns below are made anew each time they are asked for: kept, they would outgrow the run itself.

    @property
    def done(self) -> NDArray[np.bool_]:
        finished: NDArray[np.bool_] = np.frombuffer(self.columns.finished_ps, np.int64) != NOT_YET
        return finished

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Seconds until the client had the first token, with phases apart after the hand-over; infinite where none
        came."""
        return self._since_arrival_s(np.frombuffer(self.columns.first_token_ps, np.int64))

    @property
    def queue_s(self) -> NDArray[np.float64]:
        """Seconds until the first prefill chunk began; infinite where none did."""
        return self._since_arrival_s(np.frombuffer(self.columns.started_ps, np.int64))

    @property
    def mean_tbt_s(self) -> NDArray[np.float64]:
        """Mean time between a request's tokens, 0 for a single token; infinite where it did not finish."""
        first = np.frombuffer(self.columns.first_token_ps, np.int64)
        finished = np.frombuffer(self.columns.finished_ps, np.int64)
        span_s = (finished - first) / PS_PER_S
        span_s /= np.maximum(1, self.trace.output_tokens - 1)
        span_s[~self.done] = np.inf
        return span_s

    @property
    def request_energy_j(self) -> NDArray[np.float64]:
        """The meter shared out: each request its part of the iterations it was in, and what idles (contexts,
        start-ups, idle GPUs) in proportion to that."""
        busy = np.frombuffer(self.columns.energy_wps, np.float64)
        total = busy.sum()
        return busy * (self.energy_j / total) if total > 0 else busy

    def met(self, slo: Slo) -> NDArray[np.bool_]:
        """Per request: TTFT within its input class's limit and mean TBT within its own."""
        limits = np.array([slo.ttft_short_s, slo.ttft_medium_s, slo.ttft_long_s])
        met = self.ttft_s <= limits[self.trace.types() // 3]
        met &= self.mean_tbt_s <= slo.tbt_s
        met &= self.done
        return met

    def slo_attainment(self, slo: Slo) -> float:
        """Share of all requests, the lost ones too, that met their SLO."""
        return float(self.met(slo).mean()) if len(self.trace) else 1.0

    def rows(self, first: int, end: int) -> "Simulated":
        """The same run with only the requests at these positions; the energy is still everybody's."""
        part, mine, trace = slice(first, end), self.columns, self.trace
        columns = RequestColumns(
            mine.arrival_ps[part],
            mine.started_ps[part],
            mine.first_token_ps[part],
            mine.finished_ps[part],
            mine.energy_wps[part],
            mine.replica[part],
        )
        rows = Trace(trace.arrival_ps[part], trace.input_tokens[part], trace.output_tokens[part])
        return replace(self, trace=rows, columns=columns)

    @cached_property
    def records(self) -> tuple[RequestRecord, ...]:
        """One object per finished request: for small runs; the columns hold the same."""
        requests, ttft_s = self.trace.requests(), self.ttft_s
        return tuple(
            RequestRecord(
                requests[i],
                *self.replicas[self.columns.replica[i]],
                float(ttft_s[i]),
                self.columns.finished_ps[i] / PS_PER_S,
            )
            for i in np.flatnonzero(self.done)
        )

    @property
    def power_w(self) -> tuple[tuple[float, float], ...]:
        """(time in s, mean watts of the whole cluster since the time before)."""
        return tuple((sample.at_s, sample.power_w) for sample in self.samples[1:])

    def _since_arrival_s(self, at_ps: NDArray[np.int64]) -> NDArray[np.float64]:
        since_s = (at_ps - self.trace.arrival_ps) / PS_PER_S
        since_s[at_ps == NOT_YET] = np.inf
        return since_s
