"""A cluster of replicas in virtual time, driven by events; the policies are the very objects that run live.

Integer picoseconds. Events of one moment go by kind (iterations first), then by the replica's number, and an arrival
comes after all of them: so the order does not depend on which of the two replica engines runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from control_plane.actions import Action, SetFrequency, SetGpuBudget, SetReplicas
from control_plane.domain import PoolName, ReplicaId, ReplicaState, ReplicaView, Request, advance
from control_plane.hardware.coalesced_replica import CoalescedReplica
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns, TokenGaps
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.routing import Candidate
from control_plane.simulation.fleet import Fleet, PhaseSplitFleet, Role
from control_plane.simulation.gpu_slots import GpuSlots
from control_plane.simulation.outcome import Sample, Simulated
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

__all__ = ["Fleet", "Simulated", "SimulatedCluster", "candidate_of"]


class ReplicaEngine(Protocol):
    """Both engines of the replica model."""

    wake_ps: int
    first_tokens: Sequence[int]
    born_ps: int

    @property
    def target_mhz(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    def oldest_wait_ps(self, now_ps: int) -> int: ...
    def energy_wps(self, now_ps: int) -> float: ...
    def close_spans(self) -> None: ...
    def abandon(self, now_ps: int) -> list[int]: ...
    def submit(
        self, key: int, input_tokens: int, output_tokens: int, now_ps: int, kv_arrived: bool = False
    ) -> None: ...
    def set_clock(self, now_ps: int, freq_mhz: int) -> None: ...
    def fire(self, now_ps: int) -> Sequence[int]: ...


EngineFactory = Callable[[ShapeTables, RequestColumns, TokenGaps, int, int], ReplicaEngine]
"""Of tables, columns, gaps, the replica's number and its birth in ps."""


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node of eight GPUs dies with everything on it and comes back empty."""

    at_s: float
    node: int
    down_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class ClusterTimes:
    """How long changes take. A new replica on a node that runs another finds the weights in host memory."""

    cold_start_s: float = 0.0
    weights_here_start_s: float = 0.0
    kv_link_bytes_per_s: float = 50e9
    """Between nodes: one 400 Gb/s adapter."""
    kv_latency_s: float = 0.002
    kv_bytes_per_token: float = 327_680.0
    """Llama2-70B: 80 layers, 8 KV heads of 128, keys and values, two bytes."""

    @classmethod
    def for_startup(cls, startup_s: float) -> "ClusterTimes":
        """Of a cold start's 6-8 minutes, engine set-up and loading take 33 s (DynamoLLM Table V): all that is left
        where the weights are on the node."""
        return cls(startup_s, min(startup_s, 33.0))


_KIND = 1 << 40
_KEY_BITS = 43
_KEY = (1 << _KEY_BITS) - 1
"""An event is one integer, its moment above its kind and number: cheaper to compare than a pair."""
_ITERATION, _READY, _TRANSFER, _FAILURE, _REPAIR, _CONTROL, _SAMPLE = (kind * _KIND for kind in range(7))
_FOLD_SPELLS = 1 << 19
_STUCK_S = 7200.0


@dataclass(slots=True, eq=False)
class _Hosted:
    number: int
    replica_id: ReplicaId
    pool: PoolName
    tp: int
    role: Role
    nodes: tuple[int, ...]
    engine: ReplicaEngine
    state: ReplicaState
    kv_tokens: int
    outbox: int = 0
    """Requests whose KV cache waits here or is on its way: until it arrives the replica is held."""

    @property
    def empty(self) -> bool:
        return self.engine.wake_ps < 0 and self.outbox == 0


class SimulatedCluster:
    """``gpus`` GPUs (None: as many as wanted) that host replicas for a fleet of policies. Of ``idle_gpus`` GPUs
    those that no replica holds draw idle power; the rest are released and draw nothing (default: all are billed)."""

    def __init__(
        self,
        profile: MachineProfile,
        gpus: int | None,
        fleet: Fleet,
        startup_s: float = 0.0,
        sample_s: float = 1.0,
        *,
        idle_gpus: int | None = None,
        times: ClusterTimes | None = None,
        failures: Sequence[NodeFailure] = (),
        engine: EngineFactory = CoalescedReplica,
        tables: Mapping[int, ShapeTables] | None = None,
    ) -> None:
        self._profile, self._fleet, self._engine = profile, fleet, engine
        self._times = times or ClusterTimes.for_startup(startup_s)
        self._split = fleet if isinstance(fleet, PhaseSplitFleet) else None
        self._sample_ps = round(sample_s * PS_PER_S)
        self._idle_gpus = (gpus or 0) if idle_gpus is None else idle_gpus
        self._failures = sorted(failures, key=lambda f: (f.at_s, f.node))
        self._tables = tables or {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
        self._least_kv_tokens = min(t.limits.kv_tokens for t in self._tables.values())
        self._slots = GpuSlots(gpus)
        self._events: list[int] = []
        self._hosted: list[_Hosted | None] = []
        self._by_id: dict[ReplicaId, _Hosted] = {}
        self._candidates: dict[Role, tuple[Candidate, ...]] = {}
        self._transfers: list[tuple[int, ReplicaId]] = []
        self._now_ps = 0
        self._in_flight = 0
        self._idle_wps = 0.0
        self._released_wps = 0.0
        self._idle_at_ps = 0
        self._held_gpu_ps = 0
        self._peak = 0
        self._reconfigurations = 0
        self._samples: list[Sample] = []
        self._decisions: list[tuple[float, Action]] = []
        self._backlog: list[int] = []
        self._handovers: list[int] = []
        self._names: list[tuple[PoolName, ReplicaId]] = []
        self._lost = 0
        self._metered_wps = 0.0

    def run(
        self,
        requests: Trace | Sequence[Request],
        until_s: float | None = None,
        watch: Callable[[float, int, RequestColumns], bool] | None = None,
    ) -> Simulated:
        """Play the trace until every request has ended, and on to ``until_s`` where that is later. ``watch(now_s,
        requests arrived, columns)`` is asked at every sample; False ends the run there."""
        trace = requests if isinstance(requests, Trace) else Trace.of(requests)
        self._trace = trace
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._watch = watch
        self._stopped = False
        self._arrived = 0
        self._columns = RequestColumns.for_arrivals(trace.arrival_ps.data)
        self._gaps, self._gap_histogram = TokenGaps.none(), GapHistogram(trace.types())
        for action in self._fleet.first_replicas():
            self._scale(action, warm=True)
        heappush(self._events, _CONTROL)
        heappush(self._events, _SAMPLE)
        for number, failure in enumerate(self._failures):
            heappush(self._events, round(failure.at_s * PS_PER_S) << _KEY_BITS | _FAILURE + number)
        self._play_arrivals(trace)
        end_ps = 0 if until_s is None else round(until_s * PS_PER_S)
        while not self._stopped and (self._in_flight or self._events[0] >> _KEY_BITS <= end_ps):
            self._advance(self._events[0] >> _KEY_BITS)
        self._now_ps = max(self._now_ps, end_ps)
        return self._outcome()

    # arrivals and iterations: the two that are frequent

    def _play_arrivals(self, trace: Trace) -> None:
        events, by_id, route = self._events, self._by_id, self._fleet.route
        roomy = int(trace.input_tokens.max(initial=0)) + int(trace.output_tokens.max(initial=0)) <= (
            self._least_kv_tokens
        )
        plain = roomy and self._split is None
        for position, at_ps, input_tokens, output_tokens in trace.blocks():
            if events[0] >> _KEY_BITS <= at_ps:
                self._advance(at_ps)
                if self._stopped:
                    return
            self._arrived = position + 1
            self._in_flight += 1
            if not plain:
                self._now_ps = at_ps
                self._arrive(position)
                continue
            chosen = route(at_ps / PS_PER_S, position, input_tokens, self._ready(Role.COMBINED))
            if chosen is None:
                self._backlog.append(position)
                continue
            hosted = by_id[chosen[1]]
            engine = hosted.engine
            woke_ps = engine.wake_ps
            engine.submit(position, input_tokens, output_tokens, at_ps)
            if engine.wake_ps != woke_ps:
                heappush(events, engine.wake_ps << _KEY_BITS | hosted.number)

    def _advance(self, until_ps: int) -> None:
        """All events up to and at this moment."""
        events, hosted_by_number = self._events, self._hosted
        end = until_ps + 1 << _KEY_BITS
        while (event := events[0]) < end:
            now_ps, key = event >> _KEY_BITS, event & _KEY
            if key >= _READY:
                heappop(events)
                self._now_ps = now_ps
                self._handle(now_ps, key)
                if self._stopped:
                    return
                continue
            hosted = hosted_by_number[key]
            if hosted is None or hosted.engine.wake_ps != now_ps:
                heappop(events)
                continue
            engine = hosted.engine
            finished = engine.fire(now_ps)
            if engine.first_tokens:
                first_token, replica_id = self._fleet.first_token, hosted.replica_id
                for position in engine.first_tokens:
                    first_token(position, replica_id)
            if finished:
                self._now_ps = now_ps
                self._end(hosted, finished)
            if engine.wake_ps >= 0:
                heapreplace(events, engine.wake_ps << _KEY_BITS | key)
            else:
                heappop(events)
                if hosted.state is ReplicaState.DRAINING and hosted.outbox == 0:
                    self._now_ps = now_ps
                    self._stop(hosted)

    def _end(self, hosted: _Hosted, finished: Sequence[int]) -> None:
        if hosted.role is Role.PREFILL:
            for position in finished:
                self._hand_over(hosted, position)
            return
        inputs, outputs, ended = self._inputs, self._outputs, self._fleet.ended
        replica, replica_id = self._columns.replica, hosted.replica_id
        self._in_flight -= len(finished)
        for position in finished:
            replica[position] = hosted.number
            ended(position, replica_id, inputs[position], outputs[position])

    def _arrive(self, position: int) -> None:
        """Route one request, now or again."""
        input_tokens, output_tokens = self._tokens(position)
        role = Role.COMBINED if self._split is None else Role.PREFILL
        chosen = self._fleet.route(self._now_ps / PS_PER_S, position, input_tokens, self._ready(role))
        if chosen is None:
            self._backlog.append(position)
            return
        hosted = self._by_id[chosen[1]]
        wanted = input_tokens + (1 if role is Role.PREFILL else output_tokens)
        if wanted > hosted.kv_tokens:
            self._fleet.dropped(position, hosted.replica_id)
            self._lose(position)
            return
        self._submit(hosted, position, input_tokens, 1 if role is Role.PREFILL else output_tokens)

    def _submit(
        self, hosted: _Hosted, position: int, input_tokens: int, output_tokens: int, kv_arrived: bool = False
    ) -> None:
        woke_ps = hosted.engine.wake_ps
        hosted.engine.submit(position, input_tokens, output_tokens, self._now_ps, kv_arrived)
        if hosted.engine.wake_ps != woke_ps:
            heappush(self._events, hosted.engine.wake_ps << _KEY_BITS | hosted.number)

    def _lose(self, position: int) -> None:
        self._columns.finished_ps[position] = NOT_YET
        self._lost += 1
        self._in_flight -= 1

    # phases on different replicas

    def _hand_over(self, hosted: _Hosted, position: int) -> None:
        """Prefill is done: the KV cache leaves for a decode replica, if there is anything left to decode."""
        input_tokens, output_tokens = self._tokens(position)
        self._columns.replica[position] = hosted.number
        if output_tokens == 1:
            self._in_flight -= 1
            self._fleet.ended(position, hosted.replica_id, input_tokens, output_tokens)
            return
        self._columns.finished_ps[position] = NOT_YET
        hosted.outbox += 1
        self._send_kv(position)

    def _send_kv(self, position: int) -> None:
        if self._split is None:
            raise RuntimeError("only a phase-split fleet hands requests over")
        input_tokens, output_tokens = self._tokens(position)
        target = self._split.route_decode(self._now_ps / PS_PER_S, position, input_tokens, self._ready(Role.DECODE))
        if target is None:
            self._handovers.append(position)
            return
        if input_tokens + output_tokens > self._by_id[target].kv_tokens:
            self._fleet.dropped(position, target)
            self._kv_left(position)
            self._lose(position)
            return
        kv_bytes = (input_tokens + 1) * self._times.kv_bytes_per_token
        travel_s = self._times.kv_latency_s + kv_bytes / self._times.kv_link_bytes_per_s
        self._transfers.append((position, target))
        heappush(
            self._events,
            self._now_ps + max(1, round(travel_s * PS_PER_S)) << _KEY_BITS | _TRANSFER + len(self._transfers) - 1,
        )

    def _kv_arrives(self, number: int) -> None:
        position, target = self._transfers[number]
        if self._hosted[self._columns.replica[position]] is None:
            self._fleet.dropped(position, target)
            self._start_over(position)
            return
        hosted = self._by_id.get(target)
        if hosted is None or hosted.state is not ReplicaState.READY:
            self._fleet.dropped(position, target)
            self._send_kv(position)
            return
        self._kv_left(position)
        input_tokens, output_tokens = self._tokens(position)
        self._submit(hosted, position, input_tokens, output_tokens, kv_arrived=True)

    def _kv_left(self, position: int) -> None:
        source = self._hosted[self._columns.replica[position]]
        if source is None:
            raise RuntimeError(f"request {position} came from a replica that is gone")
        source.outbox -= 1
        if source.state is ReplicaState.DRAINING and source.empty:
            self._stop(source)

    def _start_over(self, position: int) -> None:
        """Its replica failed: as if it had just come, but its time to first token runs on."""
        self._columns.first_token_ps[position] = self._columns.started_ps[position] = NOT_YET
        self._arrive(position)

    # the other events

    def _handle(self, now_ps: int, key: int) -> None:
        kind, number = key // _KIND * _KIND, key % _KIND
        if kind == _CONTROL:
            self._control()
        elif kind == _SAMPLE:
            self._sample()
            heappush(self._events, now_ps + self._sample_ps << _KEY_BITS | _SAMPLE)
        elif kind == _TRANSFER:
            self._kv_arrives(number)
        elif kind == _FAILURE:
            self._fail(self._failures[number])
        elif kind == _REPAIR:
            self._slots.repair(number)
        else:
            hosted = self._hosted[number]
            if hosted is not None and hosted.state is ReplicaState.STARTING:
                hosted.state = advance(hosted.state, ReplicaState.READY)
                self._candidates.clear()
                self._dispatch_backlog()

    def _control(self) -> None:
        now_s = self._now_ps / PS_PER_S
        step = self._fleet.step(now_s, [self._seen(hosted) for hosted in self._by_id.values()])
        for action in step.actions:
            self._decisions.append((now_s, action))
            match action:
                case SetReplicas():
                    self._scale(action)
                case SetFrequency():
                    self._set_clock(action)
                case SetGpuBudget():
                    pass
        if self._backlog and not self._by_id and self._arrived == len(self._trace):
            waited_s = (self._now_ps - self._columns.arrival_ps[self._backlog[0]]) / PS_PER_S
            if waited_s > _STUCK_S:
                raise RuntimeError(
                    f"{len(self._backlog)} requests have waited for {waited_s:.0f} s and the fleet runs no replica"
                )
        if self._backlog or self._handovers:
            self._dispatch_backlog()
        wake_ps = max(self._now_ps + 1, round(step.wake_at_s * PS_PER_S))
        heappush(self._events, wake_ps << _KEY_BITS | _CONTROL)

    def _set_clock(self, action: SetFrequency) -> None:
        hosted = self._by_id.get(action.replica_id)
        if hosted is None:
            return
        engine = hosted.engine
        woke_ps = engine.wake_ps
        engine.set_clock(self._now_ps, action.freq_mhz)
        if engine.wake_ps != woke_ps:
            heappush(self._events, engine.wake_ps << _KEY_BITS | hosted.number)

    def _scale(self, action: SetReplicas, warm: bool = False) -> None:
        counted = (ReplicaState.STARTING, ReplicaState.READY)
        mine = [h for h in self._by_id.values() if h.pool == action.pool and h.tp == action.tp and h.state in counted]
        for _ in range(action.replicas - len(mine)):
            if not self._start(action.pool, action.tp, warm):
                break
        surplus = sorted(
            mine,
            key=lambda h: (h.state is ReplicaState.READY, h.engine.waiting + h.engine.running, -h.engine.born_ps),
        )
        for hosted in surplus[: max(0, len(mine) - action.replicas)]:
            if hosted.state is ReplicaState.STARTING or hosted.empty:
                self._stop(hosted)
            else:
                hosted.state = advance(hosted.state, ReplicaState.DRAINING)
                self._candidates.clear()

    def _start(self, pool: PoolName, tp: int, warm: bool) -> bool:
        nodes = self._slots.take(tp)
        if nodes is None:
            return False
        self._charge_idle(self._slots.held - tp)
        number = len(self._hosted)
        replica_id = ReplicaId(f"{pool}-tp{tp}-{number + 1}")
        engine = self._engine(self._tables[tp], self._columns, self._gaps, number, self._now_ps)
        state = ReplicaState.READY if warm else ReplicaState.STARTING
        role = Role.COMBINED if self._split is None else self._split.roles[pool]
        kv_tokens = self._tables[tp].limits.kv_tokens
        hosted = _Hosted(number, replica_id, pool, tp, role, nodes, engine, state, kv_tokens)
        self._hosted.append(hosted)
        self._names.append((pool, replica_id))
        self._by_id[replica_id] = hosted
        self._peak = max(self._peak, len(self._by_id))
        if warm:
            self._candidates.clear()
            return True
        self._reconfigurations += 1
        here = self._slots.holds_weights(nodes)
        start_s = self._times.weights_here_start_s if here else self._times.cold_start_s
        heappush(self._events, self._now_ps + round(start_s * PS_PER_S) << _KEY_BITS | _READY + number)
        return True

    def _stop(self, hosted: _Hosted) -> None:
        self._charge_idle(self._slots.held)
        self._slots.give_back(hosted.nodes)
        hosted.state = advance(hosted.state, ReplicaState.STOPPED)
        self._released_wps += hosted.engine.energy_wps(self._now_ps)
        self._held_gpu_ps += (self._now_ps - hosted.engine.born_ps) * hosted.tp
        self._reconfigurations += 1
        self._hosted[hosted.number] = None
        del self._by_id[hosted.replica_id]
        self._candidates.clear()

    def _fail(self, failure: NodeFailure) -> None:
        """Everything on the node is gone: its requests start over elsewhere, their time to first token running on."""
        self._slots.fail(failure.node)
        up_ps = self._now_ps + max(1, round(failure.down_s * PS_PER_S))
        heappush(self._events, up_ps << _KEY_BITS | _REPAIR + failure.node)
        orphans: list[int] = []
        for hosted in [h for h in self._by_id.values() if failure.node in h.nodes]:
            mine = hosted.engine.abandon(self._now_ps)
            for position in mine:
                self._fleet.dropped(position, hosted.replica_id)
            orphans += mine
            self._stop(hosted)
        for position in orphans:
            self._start_over(position)

    def _dispatch_backlog(self) -> None:
        waiting, self._backlog = self._backlog, []
        for position in waiting:
            self._arrive(position)
        handovers, self._handovers = self._handovers, []
        for position in handovers:
            if self._hosted[self._columns.replica[position]] is None:
                self._start_over(position)
            else:
                self._send_kv(position)

    # what is seen

    def _tokens(self, position: int) -> tuple[int, int]:
        return self._inputs[position], self._outputs[position]

    def _ready(self, role: Role) -> tuple[Candidate, ...]:
        found = self._candidates.get(role)
        if found is None:
            found = tuple(
                candidate_of(self._profile, h.replica_id, h.pool, h.tp)
                for h in self._by_id.values()
                if h.state is ReplicaState.READY and h.role is role
            )
            self._candidates[role] = found
        return found

    def _seen(self, hosted: _Hosted) -> tuple[PoolName, ReplicaView]:
        engine = hosted.engine
        wait_s = engine.oldest_wait_ps(self._now_ps) / PS_PER_S
        view = ReplicaView(
            hosted.replica_id, hosted.tp, engine.target_mhz, hosted.state, engine.waiting, engine.running, wait_s
        )
        return hosted.pool, view

    def _sample(self) -> None:
        now_ps = self._now_ps
        self._charge_idle(self._slots.held)
        metered_wps = self._released_wps + self._idle_wps
        clock_gpus = 0
        for hosted in self._by_id.values():
            engine = hosted.engine
            metered_wps += engine.energy_wps(now_ps)
            clock_gpus += hosted.tp * engine.target_mhz
        if len(self._gaps.spell_ps) + len(self._gaps.late_ps) >= _FOLD_SPELLS:
            self._fold_gaps()
        power_w = (metered_wps - self._metered_wps) / self._sample_ps if self._samples else 0.0
        self._metered_wps = metered_wps
        held = self._slots.held
        mean_mhz = clock_gpus / held if held else 0.0
        self._samples.append(Sample(now_ps / PS_PER_S, power_w, held, len(self._by_id), mean_mhz, self._in_flight))
        if self._watch is not None and not self._watch(now_ps / PS_PER_S, self._arrived, self._columns):
            self._stopped = True

    def _fold_gaps(self) -> None:
        for hosted in self._by_id.values():
            hosted.engine.close_spans()
        self._gap_histogram.fold(self._gaps)
        self._gaps.clear()

    def _charge_idle(self, held: int) -> None:
        idle = max(0, self._idle_gpus - held)
        self._idle_wps += idle * self._profile.gpu.idle_w * (self._now_ps - self._idle_at_ps)
        self._idle_at_ps = self._now_ps

    def _outcome(self) -> Simulated:
        now_ps = self._now_ps
        self._charge_idle(self._slots.held)
        energy_wps = self._idle_wps + self._released_wps
        held_gpu_ps = self._held_gpu_ps
        for hosted in self._by_id.values():
            energy_wps += hosted.engine.energy_wps(now_ps)
            held_gpu_ps += (now_ps - hosted.engine.born_ps) * hosted.tp
        self._fold_gaps()
        return Simulated(
            trace=self._trace,
            columns=self._columns,
            replicas=tuple(self._names),
            gaps=self._gap_histogram,
            lost=self._lost + len(self._backlog) + len(self._handovers),
            complete=not self._stopped,
            energy_j=energy_wps / PS_PER_S,
            idle_gpu_energy_j=self._idle_wps / PS_PER_S,
            ends_s=now_ps / PS_PER_S,
            gpu_hours=held_gpu_ps / PS_PER_S / 3600,
            instances_peak=self._peak,
            reconfigurations=self._reconfigurations,
            samples=tuple(self._samples),
            decisions=tuple(self._decisions),
        )


def candidate_of(profile: MachineProfile, replica_id: ReplicaId, pool: PoolName, tp: int) -> Candidate:
    """A replica as the router ranks it: its speed at full clock."""
    times = profile.times(tp)
    top = profile.max_freq_mhz
    return Candidate(replica_id, pool, times.token_ps[top] / PS_PER_S, times.base_ps[top] / PS_PER_S)
