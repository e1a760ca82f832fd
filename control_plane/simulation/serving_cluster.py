"""A cluster of replicas in virtual time, driven by events; the policies are the very objects that run live.

Integer picoseconds. Events of one moment go by kind (iterations first), then by the replica's number, and an arrival
comes after all of them: so the order does not depend on what runs the replicas. That is a floor's work: here is all
that happens in between.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from control_plane.actions import Action, SetFrequency, SetGpuBudget, SetReplicas
from control_plane.domain import PoolName, ReplicaId, ReplicaState, ReplicaView, Request, Role, advance
from control_plane.hardware.coalesced_replica import CoalescedReplica
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.routing import Candidate
from control_plane.simulation.fleet import Fleet, PhaseSplitFleet, QuickestFleet
from control_plane.simulation.floor import NOWHERE, EngineFactory, Floor, ReplicaEngine
from control_plane.simulation.gpu_slots import GpuSlots
from control_plane.simulation.heap_floor import HeapFloor
from control_plane.simulation.outcome import Sample, Simulated
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

if TYPE_CHECKING:
    from control_plane.simulation.compiled_floor import CompiledFloor

__all__ = ["Fleet", "Simulated", "SimulatedCluster", "candidate_of"]


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

    def __post_init__(self) -> None:
        for name in ("cold_start_s", "weights_here_start_s", "kv_latency_s", "kv_bytes_per_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if not self.kv_link_bytes_per_s > 0:
            raise ValueError(f"kv_link_bytes_per_s must be more than 0, got {self.kv_link_bytes_per_s}")

    @classmethod
    def for_startup(cls, startup_s: float) -> "ClusterTimes":
        """Of a cold start's 6-8 minutes, engine set-up and loading take 33 s (DynamoLLM Table V): all that is left
        where the weights are on the node."""
        return cls(startup_s, min(startup_s, 33.0))


_KIND = 1 << 40
_KEY_BITS = 43
_KEY = (1 << _KEY_BITS) - 1
"""An event is one integer, its moment above its kind and number: cheaper to compare than a pair."""
_READY, _TRANSFER, _FAILURE, _REPAIR, _CONTROL, _SAMPLE = (kind * _KIND for kind in range(1, 7))
_FOLD_SPELLS = 1 << 19
_STUCK_S = 7200.0
_LOGGED_NUMBER, _LOGGED_REQUEST = 33, (1 << 32) - 1

COMPILED_FROM = 100_000
"""Requests from which the compiled floor is worth its start: half a second, and ten where it never ran."""


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
    those that no replica holds draw idle power; the rest are released and draw nothing (default: all are billed).

    ``engine`` None: the compiled floor for long traces without failures and phases apart, ``CoalescedReplica`` for the
    rest. ``policy_clock_s`` counts CPU seconds; without it ``policy_s`` stays 0.
    """

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
        engine: EngineFactory | Literal["compiled"] | None = None,
        tables: Mapping[int, ShapeTables] | None = None,
        policy_clock_s: Callable[[], float] | None = None,
    ) -> None:
        self._profile, self._fleet, self._engine = profile, fleet, engine
        self._policy_clock_s = policy_clock_s
        self._clock_cost_s = _cost_s(policy_clock_s) if policy_clock_s else 0.0
        self.policy_s = 0.0
        """CPU seconds spent in the fleet's policies, every call measured."""
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
        self._ended = 0
        self._told: list[int] = []
        self._self_routing: CompiledFloor | None = None
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
        self._sampled_ps = 0

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
        self._columns = RequestColumns.for_arrivals(trace.arrival_ps.data)
        self._gap_histogram = GapHistogram(trace.types())
        most_tokens = int(trace.input_tokens.max(initial=0)) + int(trace.output_tokens.max(initial=0))
        self._roomy = most_tokens <= self._least_kv_tokens
        self._floor = floor = self._lay_floor(trace)
        for action in self._fleet.first_replicas():
            self._scale(action, warm=True)
        heappush(self._events, _CONTROL)
        heappush(self._events, _SAMPLE)
        for number, failure in enumerate(self._failures):
            heappush(self._events, round(failure.at_s * PS_PER_S) << _KEY_BITS | _FAILURE + number)
        end_ps = 0 if until_s is None else round(until_s * PS_PER_S)
        while True:
            next_ps = self._events[0] >> _KEY_BITS
            if self._self_routing is not None:
                self._offer(self._self_routing)
            floor.play(next_ps)
            self._now_ps = max(self._now_ps, floor.last_ps)
            event = self._events[0]
            at_ps = event >> _KEY_BITS
            if floor.arrived == len(trace) and not self._in_flight and at_ps > max(self._now_ps, end_ps):
                break
            heappop(self._events)
            self._now_ps = at_ps
            self._handle(at_ps, event & _KEY)
            if self._stopped:
                break
        self._tell()
        self._now_ps = max(self._now_ps, end_ps)
        outcome = self._outcome()
        self._take_down()
        return outcome

    def _lay_floor(self, trace: Trace) -> Floor:
        whole = self._split is None and not self._failures
        compiled = self._engine == "compiled"
        if compiled and not whole:
            raise ValueError("the compiled floor knows neither failures nor phases apart")
        if compiled or (self._engine is None and whole and len(trace) >= COMPILED_FROM):
            # Loading numba takes longer than a short run.
            from control_plane.simulation.compiled_floor import CompiledFloor

            alone = isinstance(self._fleet, QuickestFleet) and self._fleet.takes_quickest
            tables = tuple(self._tables.values())
            floor = CompiledFloor(trace, self._columns, self._gap_histogram, self, tables, alone)
            self._self_routing = floor if alone else None
            return floor
        engine = CoalescedReplica if self._engine is None or self._engine == "compiled" else self._engine
        return HeapFloor(trace, self._columns, self._gap_histogram, self, engine, self._split is not None)

    def _take_down(self) -> None:
        """Floor and cluster know each other: where garbage is not collected the next run would add to this one."""
        self._floor.close()
        del self._floor
        self._self_routing = None
        self._hosted.clear()
        self._by_id.clear()

    @property
    def _in_flight(self) -> int:
        floor = self._floor
        return floor.arrived - floor.ended - floor.lost - self._ended - self._lost

    # what floors ask

    def choose(self, position: int, at_ps: int, input_tokens: int, output_tokens: int) -> int:
        """Part of ``FloorHost``."""
        chosen = self._routed(position, at_ps, input_tokens)
        if chosen is None:
            self._backlog.append(position)
            return NOWHERE
        hosted = self._by_id[chosen]
        if not self._roomy and input_tokens + output_tokens > hosted.kv_tokens:
            self._fleet.dropped(position, hosted.replica_id)
            self._lose(position)
            return NOWHERE
        return hosted.number

    def _routed(self, position: int, at_ps: int, input_tokens: int) -> ReplicaId | None:
        if self._self_routing is not None:
            self._offer(self._self_routing)
            number = self._self_routing.quickest(input_tokens)
            return None if number == NOWHERE else self._names[number][1]
        clock_s = self._policy_clock_s
        start_s = clock_s() if clock_s else 0.0
        if self._told:
            self._tell_all()
        ready = self._ready(Role.COMBINED if self._split is None else Role.PREFILL)
        chosen = self._fleet.route(at_ps / PS_PER_S, position, input_tokens, ready)
        if clock_s:
            self.policy_s += clock_s() - start_s - self._clock_cost_s
        return None if chosen is None else chosen[1]

    def _offer(self, floor: "CompiledFloor") -> None:
        if not self._candidates:
            floor.offer([(self._by_id[c.replica_id].number, c) for c in self._ready(Role.COMBINED)])

    def logged(self, entries: Sequence[int]) -> None:
        """Part of ``FloorHost``."""
        self._told += entries

    def progress(self, number: int, now_ps: int, first_tokens: Sequence[int], finished: Sequence[int]) -> None:
        """Part of ``FloorHost``."""
        told, tag = self._told, number << _LOGGED_NUMBER
        for position in first_tokens:
            told.append(tag | position << 1)
        if not finished:
            return
        if self._split is not None:
            self._now_ps = now_ps
            hosted = self._hosted[number]
            if hosted is not None and hosted.role is Role.PREFILL:
                self._tell()
                for position in finished:
                    self._hand_over(hosted, position)
                return
        self._ended += len(finished)
        replica = self._columns.replica
        for position in finished:
            replica[position] = number
            told.append(tag | position << 1 | 1)

    def idle(self, number: int, now_ps: int) -> None:
        """Part of ``FloorHost``."""
        hosted = self._hosted[number]
        if hosted is not None and hosted.state is ReplicaState.DRAINING and hosted.outbox == 0:
            self._now_ps = now_ps
            self._stop(hosted)

    def _tell(self) -> None:
        """Policies hear what happened before they are asked anything."""
        if not self._told:
            return
        clock_s = self._policy_clock_s
        start_s = clock_s() if clock_s else 0.0
        self._tell_all()
        if clock_s:
            self.policy_s += clock_s() - start_s - self._clock_cost_s

    def _tell_all(self) -> None:
        first_token, ended, names = self._fleet.first_token, self._fleet.ended, self._names
        inputs, outputs = self._inputs, self._outputs
        told, self._told = self._told, []
        for entry in told:
            position = entry >> 1 & _LOGGED_REQUEST
            replica_id = names[entry >> _LOGGED_NUMBER][1]
            if entry & 1:
                ended(position, replica_id, inputs[position], outputs[position])
            else:
                first_token(position, replica_id)

    def _arrive(self, position: int) -> None:
        """Route one request again."""
        input_tokens, output_tokens = self._tokens(position)
        answered = output_tokens if self._split is None else 1
        number = self.choose(position, self._now_ps, input_tokens, answered)
        if number != NOWHERE:
            self._floor.submit(number, position, input_tokens, answered, self._now_ps)

    def _lose(self, position: int) -> None:
        self._columns.finished_ps[position] = NOT_YET
        self._lost += 1

    # phases on different replicas

    def _hand_over(self, hosted: _Hosted, position: int) -> None:
        """Prefill is done: the KV cache leaves for a decode replica, if there is anything left to decode."""
        input_tokens, output_tokens = self._tokens(position)
        self._columns.replica[position] = hosted.number
        if output_tokens == 1:
            self._ended += 1
            self._fleet.ended(position, hosted.replica_id, input_tokens, output_tokens)
            return
        self._columns.first_token_ps[position] = self._columns.finished_ps[position] = NOT_YET
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
        kv_bytes = input_tokens * self._times.kv_bytes_per_token
        travel_s = self._times.kv_latency_s + kv_bytes / self._times.kv_link_bytes_per_s
        arrives_ps = self._now_ps + max(1, round(travel_s * PS_PER_S))
        heappush(self._events, arrives_ps << _KEY_BITS | _TRANSFER + len(self._transfers))
        self._transfers.append((position, target))
        self._floor.hasten(arrives_ps)

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
        self._floor.submit(hosted.number, position, input_tokens, output_tokens, self._now_ps, kv_arrived=True)

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
        self._tell()
        kind, number = key // _KIND * _KIND, key % _KIND
        if kind == _CONTROL:
            self._control()
        elif kind == _SAMPLE:
            self._sample()
            self._ask_watch()
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
        now_s, clock_s = self._now_ps / PS_PER_S, self._policy_clock_s
        seen = [self._seen(hosted) for hosted in self._by_id.values()]
        start_s = clock_s() if clock_s else 0.0
        step = self._fleet.step(now_s, seen)
        if clock_s:
            self.policy_s += clock_s() - start_s - self._clock_cost_s
        for action in step.actions:
            self._decisions.append((now_s, action))
            match action:
                case SetReplicas():
                    self._scale(action)
                case SetFrequency():
                    self._set_clock(action)
                case SetGpuBudget():
                    pass
        if self._backlog and not self._by_id and self._floor.arrived == len(self._trace):
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
        if hosted is not None:
            self._floor.set_clock(hosted.number, self._now_ps, action.freq_mhz)

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
                self._floor.drain(hosted.number)
                self._candidates.clear()

    def _start(self, pool: PoolName, tp: int, warm: bool) -> bool:
        nodes = self._slots.take(tp)
        if nodes is None:
            return False
        self._charge_idle(self._slots.held - tp)
        number = len(self._hosted)
        replica_id = ReplicaId(f"{pool}-tp{tp}-{number + 1}")
        engine = self._floor.place(number, self._tables[tp], self._now_ps)
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
        self._floor.remove(hosted.number)
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
        self._floor.fold_gaps(_FOLD_SPELLS)
        power_w = (metered_wps - self._metered_wps) / (now_ps - self._sampled_ps) if self._samples else 0.0
        self._metered_wps, self._sampled_ps = metered_wps, now_ps
        held = self._slots.held
        mean_mhz = clock_gpus / held if held else 0.0
        energy_j = metered_wps / PS_PER_S
        replicas = len(self._by_id)
        self._samples.append(Sample(now_ps / PS_PER_S, power_w, energy_j, held, replicas, mean_mhz, self._in_flight))

    def _ask_watch(self) -> None:
        now_ps = self._now_ps
        if self._watch is not None and not self._watch(now_ps / PS_PER_S, self._floor.arrived, self._columns):
            self._stopped = True

    def _charge_idle(self, held: int) -> None:
        idle = max(0, self._idle_gpus - held)
        self._idle_wps += idle * self._profile.gpu.idle_w * (self._now_ps - self._idle_at_ps)
        self._idle_at_ps = self._now_ps

    def _outcome(self) -> Simulated:
        now_ps = self._now_ps
        if now_ps > self._sampled_ps:
            self._sample()
        held_gpu_ps = self._held_gpu_ps
        for hosted in self._by_id.values():
            held_gpu_ps += (now_ps - hosted.engine.born_ps) * hosted.tp
        self._floor.fold_gaps()
        return Simulated(
            trace=self._trace,
            columns=self._columns,
            replicas=tuple(self._names),
            gaps=self._gap_histogram,
            lost=self._lost + self._floor.lost + len(self._backlog) + len(self._handovers),
            complete=not self._stopped,
            energy_j=self._metered_wps / PS_PER_S,
            idle_gpu_energy_j=self._idle_wps / PS_PER_S,
            ends_s=now_ps / PS_PER_S,
            gpu_hours=held_gpu_ps / PS_PER_S / 3600,
            instances_peak=self._peak,
            reconfigurations=self._reconfigurations,
            samples=tuple(self._samples),
            decisions=tuple(self._decisions),
        )


def warm_up(profile: MachineProfile, trace: Trace, fleet: Fleet) -> None:
    """Load what a run of this trace will need, or compile it where that never happened: not a run's own time. The
    ``fleet`` is used up."""
    if len(trace) >= COMPILED_FROM:
        first = Trace(trace.arrival_ps[:1], trace.input_tokens[:1], trace.output_tokens[:1])
        SimulatedCluster(profile, None, fleet, engine="compiled").run(first)


def _cost_s(clock_s: Callable[[], float]) -> float:
    """What reading the clock adds to what it measures."""
    reads = [clock_s() for _ in range(9)]
    return min(after - before for before, after in pairwise(reads))


def candidate_of(profile: MachineProfile, replica_id: ReplicaId, pool: PoolName, tp: int) -> Candidate:
    """A replica as the router ranks it: its speed at full clock."""
    times = profile.times(tp)
    top = profile.max_freq_mhz
    return Candidate(replica_id, pool, times.token_ps[top] / PS_PER_S, times.base_ps[top] / PS_PER_S)
