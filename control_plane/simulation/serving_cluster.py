"""A cluster of replicas in virtual time, driven by events; the policies are the very objects that run live.

Integer picoseconds: two events at one moment are ordered by kind, then by who was first.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from control_plane.actions import Action, SetFrequency, SetGpuBudget, SetReplicas, Step
from control_plane.domain import (
    PoolName,
    ReplicaId,
    ReplicaState,
    ReplicaView,
    Request,
    Slo,
    advance,
)
from control_plane.hardware.gpu_model import IDLE, GpuState
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S, ReplicaModel
from control_plane.serving.routing import Candidate

PS_PER_NS = 1000


class Fleet(Protocol):
    """The policies of a whole cluster as the simulator asks them."""

    def first_replicas(self) -> Sequence[SetReplicas]: ...
    def route(
        self, now_s: float, request_id: str, input_tokens: int, candidates: Sequence[Candidate]
    ) -> tuple[PoolName, ReplicaId] | None: ...
    def first_token(self, request_id: str, replica_id: ReplicaId) -> None: ...
    def ended(self, request_id: str, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None: ...
    def step(self, now_s: float, replicas: Sequence[tuple[PoolName, ReplicaView]]) -> Step: ...


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
class Simulated:
    """Outcome of a simulated run: every request, and the energy of every GPU, the idle ones too."""

    records: tuple[RequestRecord, ...]
    lost: int
    energy_j: float
    ends_s: float
    gpu_hours: float
    """GPU time held by replicas."""
    instances_peak: int
    reconfigurations: int
    power_w: tuple[tuple[float, float], ...] = ()
    """(time in s, watts of the whole cluster), every few seconds."""
    decisions: tuple[tuple[float, Action], ...] = ()

    def slo_attainment(self, slo: Slo) -> float:
        met = sum(slo.met(r.request.input_tokens, r.ttft_s, r.mean_tbt_s) for r in self.records)
        total = len(self.records) + self.lost
        return met / total if total else 1.0


class _Kind(IntEnum):
    READY = 0
    ITERATION = 1
    CONTROL = 2
    SAMPLE = 3


@dataclass(slots=True, eq=False)
class _Replica:
    replica_id: ReplicaId
    pool: PoolName
    tp: int
    model: ReplicaModel
    gpu: GpuState
    state: ReplicaState
    started_ps: int
    iterating: bool = False
    requests: dict[str, Request] = field(default_factory=dict)


class SimulatedCluster:
    """``gpus`` GPUs that host replicas for a fleet of policies. One representative GPU stands for the ``tp`` equal
    ones of a replica."""

    def __init__(
        self,
        profile: MachineProfile,
        gpus: int,
        fleet: Fleet,
        startup_s: float = 0.0,
        sample_s: float = 1.0,
    ) -> None:
        self._profile, self._gpus, self._fleet = profile, gpus, fleet
        self._startup_ps = round(startup_s * PS_PER_S)
        self._sample_ps = round(sample_s * PS_PER_S)
        self._events: list[tuple[int, _Kind, int, _Replica | None]] = []
        self._replicas: dict[ReplicaId, _Replica] = {}
        self._now_ps = 0
        self._order = 0
        self._born = 0
        self._idle_energy_j = 0.0
        self._released_energy_j = 0.0
        self._idle_at_ps = 0
        self._gpu_seconds = 0.0
        self._peak = 0
        self._reconfigurations = 0
        self._power: list[tuple[float, float]] = []
        self._decisions: list[tuple[float, Action]] = []
        self._records: list[RequestRecord] = []
        self._ttft: dict[str, float] = {}
        self._backlog: list[Request] = []

    def run(self, trace: Sequence[Request], until_s: float | None = None) -> Simulated:
        """Play the trace until every request has ended, and on to ``until_s`` where that is later."""
        for action in self._fleet.first_replicas():
            self._scale(action, warm=True)
        self._schedule(0, _Kind.CONTROL)
        self._schedule(0, _Kind.SAMPLE)
        end_ps = 0 if until_s is None else round(until_s * PS_PER_S)
        arrivals = [(round(r.arrival_s * PS_PER_S), r) for r in trace]
        following = 0
        while True:
            arrival_ps = arrivals[following][0] if following < len(arrivals) else None
            event_ps = self._events[0][0]
            working = arrival_ps is not None or self._in_flight() > 0
            if not working and event_ps > end_ps:
                break
            if arrival_ps is not None and arrival_ps < event_ps:
                self._now_ps = arrival_ps
                self._arrive(arrivals[following][1])
                following += 1
                continue
            event_ps, kind, _, replica = heapq.heappop(self._events)
            self._now_ps = event_ps
            self._handle(kind, replica)
            if working and not any(r.state is not ReplicaState.STOPPED for r in self._replicas.values()):
                self._fail_if_stuck(following < len(arrivals))
        self._now_ps = max(self._now_ps, end_ps)
        return self._outcome()

    # events

    def _handle(self, kind: _Kind, replica: _Replica | None) -> None:
        match kind:
            case _Kind.CONTROL:
                self._control()
            case _Kind.SAMPLE:
                self._power.append((self._now_ps / PS_PER_S, self._cluster_power_w()))
                self._schedule(self._now_ps + self._sample_ps, _Kind.SAMPLE)
            case _Kind.READY if replica is not None:
                if replica.state is ReplicaState.STARTING:
                    replica.state = advance(replica.state, ReplicaState.READY)
                    self._dispatch_backlog()
            case _Kind.ITERATION if replica is not None:
                self._end_iteration(replica)

    def _arrive(self, request: Request) -> None:
        chosen = self._fleet.route(
            self._now_ps / PS_PER_S, request.request_id, request.input_tokens, self._candidates()
        )
        if chosen is None:
            self._backlog.append(request)
            return
        _, replica_id = chosen
        replica = self._replicas[replica_id]
        replica.requests[request.request_id] = request
        arrived_ps = round(request.arrival_s * PS_PER_S)
        replica.model.submit(request.request_id, request.input_tokens, request.output_tokens, arrived_ps)
        if not replica.iterating:
            self._begin_iteration(replica)

    def _dispatch_backlog(self) -> None:
        waiting, self._backlog = self._backlog, []
        for request in waiting:
            self._arrive(request)

    def _begin_iteration(self, replica: _Replica) -> None:
        now_ns = self._now_ps // PS_PER_NS
        replica.gpu = replica.gpu.advance(self._profile.gpu, now_ns)
        iteration = replica.model.begin(replica.gpu.freq_mhz)
        replica.iterating = iteration is not None
        activity = IDLE if iteration is None else iteration.activity
        replica.gpu = replica.gpu.with_activity(self._profile.gpu, now_ns, activity)
        if iteration is not None:
            self._schedule(self._now_ps + iteration.duration_ps, _Kind.ITERATION, replica)
        elif replica.state is ReplicaState.DRAINING:
            self._stop(replica)

    def _end_iteration(self, replica: _Replica) -> None:
        progress = replica.model.complete()
        now_s = self._now_ps / PS_PER_S
        for key in progress.first_token:
            request = replica.requests[str(key)]
            self._ttft[request.request_id] = now_s - request.arrival_s
            self._fleet.first_token(request.request_id, replica.replica_id)
        for key in progress.finished:
            request = replica.requests.pop(str(key))
            self._fleet.ended(request.request_id, replica.replica_id, request.input_tokens, request.output_tokens)
            ttft_s = self._ttft.pop(request.request_id)
            self._records.append(RequestRecord(request, replica.pool, replica.replica_id, ttft_s, now_s))
        self._begin_iteration(replica)

    # control

    def _control(self) -> None:
        step = self._fleet.step(self._now_ps / PS_PER_S, [self._seen(r) for r in self._replicas.values()])
        for action in step.actions:
            self._decisions.append((self._now_ps / PS_PER_S, action))
            match action:
                case SetReplicas():
                    self._scale(action)
                case SetFrequency():
                    if action.replica_id not in self._replicas:
                        continue  # drained by an action before this one
                    replica = self._replicas[action.replica_id]
                    now_ns = self._now_ps // PS_PER_NS
                    replica.gpu = replica.gpu.locked(self._profile.gpu, now_ns, action.freq_mhz)
                case SetGpuBudget():
                    pass
        self._schedule(max(self._now_ps + 1, round(step.wake_at_s * PS_PER_S)), _Kind.CONTROL)

    def _scale(self, action: SetReplicas, warm: bool = False) -> None:
        mine = [
            r
            for r in self._replicas.values()
            if r.pool == action.pool and r.tp == action.tp and r.state in (ReplicaState.STARTING, ReplicaState.READY)
        ]
        for _ in range(action.replicas - len(mine)):
            if self._gpus_held() + action.tp > self._gpus:
                break
            self._start(action.pool, action.tp, warm)
        surplus = sorted(mine, key=lambda r: (r.state is ReplicaState.READY, len(r.requests), -r.started_ps))
        for replica in surplus[: max(0, len(mine) - action.replicas)]:
            if replica.state is ReplicaState.STARTING or not replica.iterating:
                self._stop(replica)
            else:
                replica.state = advance(replica.state, ReplicaState.DRAINING)

    def _start(self, pool: PoolName, tp: int, warm: bool) -> None:
        self._charge_idle()
        self._born += 1
        replica_id = ReplicaId(f"{pool}-tp{tp}-{self._born}")
        now_ns = self._now_ps // PS_PER_NS
        gpu = GpuState.at_default(self._profile.gpu, now_ns).with_contexts(self._profile.gpu, now_ns, 1)
        model = ReplicaModel(self._profile.times(tp), self._profile.limits(tp))
        state = ReplicaState.READY if warm else ReplicaState.STARTING
        replica = _Replica(replica_id, pool, tp, model, gpu, state, self._now_ps)
        self._replicas[replica_id] = replica
        self._peak = max(self._peak, len(self._replicas))
        if not warm:
            self._reconfigurations += 1
            self._schedule(self._now_ps + self._startup_ps, _Kind.READY, replica)

    def _stop(self, replica: _Replica) -> None:
        self._charge_idle()
        replica.state = advance(replica.state, ReplicaState.STOPPED)
        now_ns = self._now_ps // PS_PER_NS
        self._released_energy_j += replica.gpu.advance(self._profile.gpu, now_ns).energy_j * replica.tp
        self._gpu_seconds += (self._now_ps - replica.started_ps) / PS_PER_S * replica.tp
        self._reconfigurations += 1
        del self._replicas[replica.replica_id]

    # what is seen

    def _candidates(self) -> list[Candidate]:
        return [
            candidate_of(self._profile, r.replica_id, r.pool, r.tp)
            for r in self._replicas.values()
            if r.state is ReplicaState.READY
        ]

    def _seen(self, replica: _Replica) -> tuple[PoolName, ReplicaView]:
        model = replica.model
        wait_s = model.oldest_wait_ps(self._now_ps) / PS_PER_S
        view = ReplicaView(
            replica.replica_id,
            replica.tp,
            replica.gpu.target_mhz,
            replica.state,
            model.waiting,
            model.running,
            wait_s,
        )
        return replica.pool, view

    def _in_flight(self) -> int:
        return len(self._backlog) + sum(len(r.requests) for r in self._replicas.values())

    def _gpus_held(self) -> int:
        return sum(r.tp for r in self._replicas.values())

    def _cluster_power_w(self) -> float:
        spec = self._profile.gpu
        now_ns = self._now_ps // PS_PER_NS
        held = sum(r.gpu.advance(spec, now_ns).power_w(spec) * r.tp for r in self._replicas.values())
        return held + (self._gpus - self._gpus_held()) * spec.idle_w

    def _charge_idle(self) -> None:
        idle = self._gpus - self._gpus_held()
        self._idle_energy_j += idle * self._profile.gpu.idle_w * (self._now_ps - self._idle_at_ps) / PS_PER_S
        self._idle_at_ps = self._now_ps

    def _fail_if_stuck(self, arrivals_left: bool) -> None:
        if not arrivals_left and self._backlog and not any(kind is _Kind.READY for _, kind, _, _ in self._events):
            raise RuntimeError(f"{len(self._backlog)} requests wait and the fleet runs no replica")

    def _schedule(self, at_ps: int, kind: _Kind, replica: _Replica | None = None) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_ps, kind, self._order, replica))

    def _outcome(self) -> Simulated:
        self._charge_idle()
        now_ns = self._now_ps // PS_PER_NS
        held_j = sum(r.gpu.advance(self._profile.gpu, now_ns).energy_j * r.tp for r in self._replicas.values())
        held_s = sum((self._now_ps - r.started_ps) / PS_PER_S * r.tp for r in self._replicas.values())
        return Simulated(
            records=tuple(sorted(self._records, key=lambda r: (r.request.arrival_s, r.request.request_id))),
            lost=len(self._backlog),
            energy_j=self._idle_energy_j + self._released_energy_j + held_j,
            ends_s=self._now_ps / PS_PER_S,
            gpu_hours=(self._gpu_seconds + held_s) / 3600,
            instances_peak=self._peak,
            reconfigurations=self._reconfigurations,
            power_w=tuple(self._power),
            decisions=tuple(self._decisions),
        )


def candidate_of(profile: MachineProfile, replica_id: ReplicaId, pool: PoolName, tp: int) -> Candidate:
    """A replica as the router ranks it: its speed at full clock."""
    times = profile.times(tp)
    top = profile.max_freq_mhz
    return Candidate(replica_id, pool, times.token_ps[top] / PS_PER_S, times.base_ps[top] / PS_PER_S)
