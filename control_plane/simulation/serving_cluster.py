"""A cluster of replicas in virtual time, driven by events; the policies are the very objects that run live.

Integer picoseconds. Between two events of ``cluster.event_queue`` the event loop runs the replicas; here is what
happens at the events, and what the loop asks in between. The order does not depend on which event loop it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from control_plane.actions import Action, SetFrequency, SetGovernor, SetGpuBudget, SetPowerLimit, SetReplicas
from control_plane.domain import ReplicaId, ReplicaState, Request, Role, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.request_columns import NOT_YET, RequestColumns
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.cluster.asked_fleet import AskedFleet
from control_plane.simulation.cluster.billing import Billing
from control_plane.simulation.cluster.event_queue import Event, EventQueue
from control_plane.simulation.cluster.governors import TICK_PS, Governors
from control_plane.simulation.cluster.gpu_slots import GpuSlots
from control_plane.simulation.cluster.kv_transfers import KvTransfers, TooLarge
from control_plane.simulation.cluster.replicas import Replicas, candidate_of
from control_plane.simulation.cluster.sampling import Sampling
from control_plane.simulation.cluster.scaling import Scaling
from control_plane.simulation.cluster.times import ClusterTimes, NodeFailure
from control_plane.simulation.cluster.views import ReplicaViews
from control_plane.simulation.event_loop import NOWHERE, EventLoop
from control_plane.simulation.fleet import Fleet, QuickestFleet, RuledFleet
from control_plane.simulation.outcome import Simulated
from control_plane.simulation.stepped_loop import Stepped
from control_plane.simulation.token_gaps import GapHistogram
from control_plane.simulation.trace import Trace

if TYPE_CHECKING:
    from control_plane.simulation.compiled_loop import Compiled

__all__ = ["ClusterTimes", "Fleet", "NodeFailure", "Simulated", "SimulatedCluster", "candidate_of", "warm_up"]

Engine = Literal["compiled", "stepped"]

_STUCK_S = 7200.0

COMPILED_FROM_TOKENS = 20_000
"""Output tokens of a trace from which the compiled event loop is worth its start: it takes half a second to load where
it was compiled before and ten seconds to compile; stepping through so many tokens takes less on any fleet."""


class SimulatedCluster:
    """``gpus`` GPUs (None: as many as wanted) that host replicas for a fleet of policies. Of ``idle_gpus`` GPUs
    those that no replica holds draw idle power; the rest are released and draw nothing (default: all are billed).

    ``engine`` None: compiled, except for short traces. ``slo`` has the limits that governors see. ``policy_clock_s``
    counts CPU seconds; without it ``policy_s`` stays 0. A cluster runs one trace.
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
        engine: Engine | None = None,
        tables: Mapping[int, ShapeTables] | None = None,
        slo: Slo | None = None,
        policy_clock_s: Callable[[], float] | None = None,
    ) -> None:
        self._profile, self._fleet, self._engine = profile, fleet, engine
        self._policy_clock_s = policy_clock_s
        self._times = times or ClusterTimes.for_startup(startup_s)
        self._sample_ps = round(sample_s * PS_PER_S)
        self._failures = sorted(failures, key=lambda f: (f.at_s, f.node))
        self._tables = tables or {tp: ShapeTables.of(profile, tp) for tp in profile.tps}
        self._slo = slo or Slo()
        self._entry_role = Role.PREFILL if fleet.splits_phases else Role.COMBINED
        self._replicas, self._events, self._slots = Replicas(profile), EventQueue(), GpuSlots(gpus)
        self._billing = Billing((gpus or 0) if idle_gpus is None else idle_gpus, profile.gpu.idle_w)
        self._sampling = Sampling(self._replicas, self._slots, self._billing)
        self._compiled: Compiled | None = None
        self._self_routing: Compiled | None = None
        self._by_rule: Compiled | None = None
        """The loop where it routes by the fleet's rule."""
        self._backlog: list[int] = []
        self._decisions: list[tuple[float, Action]] = []
        self._now_ps = 0
        self._lost = 0
        self._governing = False

    @property
    def policy_s(self) -> float:
        """CPU seconds spent in the fleet's policies, every call measured."""
        return self._asked.cpu_s

    def run(
        self,
        requests: Trace | Sequence[Request],
        until_s: float | None = None,
        watch: Callable[[float, int, RequestColumns], bool] | None = None,
    ) -> Simulated:
        """Play the trace until every request has ended, and on to ``until_s`` where that is later. ``watch(now_s,
        requests arrived, columns)`` is asked at every sample; False ends the run there."""
        trace = requests if isinstance(requests, Trace) else Trace.of(requests)
        self._set_up(trace)
        for first in self._fleet.first_replicas():
            self._scale(first, warm=True)
        self._events.push(0, Event.CONTROL)
        self._events.push(0, Event.SAMPLE)
        for number, failure in enumerate(self._failures):
            self._events.push(round(failure.at_s * PS_PER_S), Event.FAILURE, number)
        stopped = self._play(0 if until_s is None else round(until_s * PS_PER_S), watch)
        outcome = self._outcome(complete=not stopped)
        # Loop and cluster know each other: where garbage is not collected the next run would add to this one.
        self._loop.close()
        return outcome

    def _set_up(self, trace: Trace) -> None:
        self._trace = trace
        self._inputs, self._outputs = trace.input_tokens.data, trace.output_tokens.data
        self._columns = RequestColumns.for_arrivals(trace.arrival_ps.data)
        self._gaps = GapHistogram(trace.types())
        most_tokens = int(trace.input_tokens.max(initial=0)) + int(trace.output_tokens.max(initial=0))
        self._roomy = most_tokens <= min(t.limits.kv_tokens for t in self._tables.values())
        self._loop = loop = self._make_loop(trace)
        learns_nothing = self._self_routing is not None
        self._governors = Governors(self._profile.gpu, self._slo, trace, loop, self._compiled)
        self._asked = AskedFleet(
            self._fleet,
            trace,
            self._columns,
            self._replicas.names,
            self._policy_clock_s,
            learns_nothing,
            self._governors.first_token,
        )
        self._scaling = Scaling(
            self._tables,
            self._times,
            self._fleet.governor,
            self._replicas,
            self._slots,
            self._billing,
            self._events,
            loop,
            self._governors,
        )
        self._kv = KvTransfers(self._times, trace, self._columns, self._asked, self._replicas, loop, self._by_rule)
        self._views = ReplicaViews(self._fleet.needs, self._slo, trace, self._columns, self._replicas)

    def _make_loop(self, trace: Trace) -> EventLoop:
        short = int(trace.output_tokens.sum()) < COMPILED_FROM_TOKENS
        if self._engine == "stepped" or (self._engine is None and short):
            return Stepped(trace, self._columns, self._gaps, self)
        # Loading numba takes longer than a short run.
        from control_plane.simulation.compiled_loop import Compiled
        from control_plane.simulation.compiled_rules import RouteBook

        fleet = self._fleet
        alone = isinstance(fleet, QuickestFleet) and fleet.takes_quickest and not fleet.splits_phases
        rule = fleet.routing_rule if isinstance(fleet, RuledFleet) and fleet.splits_phases else None
        routes = None if rule is None else RouteBook(rule, self._times)
        shapes = tuple(self._tables.values())
        loop = Compiled(trace, self._columns, self._gaps, self, shapes, alone, self._slo, routes)
        self._compiled = loop
        self._self_routing = loop if alone else None
        self._by_rule = loop if routes is not None else None
        return loop

    def _play(self, end_ps: int, watch: Callable[[float, int, RequestColumns], bool] | None) -> bool:
        """True where the watch stopped it."""
        loop, events = self._loop, self._events
        stopped = False
        while not stopped:
            next_ps, kind, _ = events.first()
            self._offer()
            loop.play(next_ps, kv_too=kind is not Event.READY)
            self._now_ps = max(self._now_ps, loop.last_ps)
            at_ps, kind, number = events.first()
            if loop.arrived == len(self._trace) and not self._in_flight and at_ps > max(self._now_ps, end_ps):
                break
            events.pop()
            self._now_ps = at_ps
            self._handle(kind, number)
            if kind is Event.SAMPLE and watch is not None:
                stopped = not watch(at_ps / PS_PER_S, loop.arrived, self._columns)
        self._asked.tell()
        self._now_ps = max(self._now_ps, end_ps)
        return stopped

    @property
    def _in_flight(self) -> int:
        return self._loop.arrived - self._loop.ended - self._loop.lost - self._lost

    # what the event loop asks: these implement LoopHost

    def choose(self, position: int, at_ps: int, input_tokens: int, output_tokens: int) -> int:
        chosen = self._routed(position, at_ps, input_tokens)
        if chosen is None:
            self._backlog.append(position)
            return NOWHERE
        hosted = self._replicas.by_id[chosen]
        if not self._roomy:
            answered = 1 if hosted.role is Role.PREFILL else output_tokens
            if input_tokens + answered > hosted.kv_tokens:
                self._dropped(position, hosted.number)
                self._lose(position, at_ps)
                return NOWHERE
        return hosted.number

    def logged(self, entries: Sequence[int]) -> None:
        self._asked.note(entries)

    def hand_over(self, number: int, now_ps: int, positions: Sequence[int]) -> None:
        send = self._kv.send
        for position in positions:
            refused = send(position, now_ps)
            if refused is not None:
                self._refused(refused, position, now_ps)

    def stranded(self, position: int, too_large: bool, now_ps: int) -> None:
        if too_large:
            self._refused(TooLarge(None), position, now_ps)
        else:
            self._kv.waiting.append(position)

    def undelivered(self, position: int, target: int, now_ps: int) -> None:
        self._dropped(position, target)
        if self._kv.source(position) is None:
            self._start_over(position, now_ps)
        else:
            self._send_kv(position, now_ps)

    def look(self, number: int, now_ps: int) -> None:
        hosted = self._replicas.get(number)
        if hosted is not None:
            self._governors.look(hosted, now_ps)

    def drained(self, number: int, now_ps: int) -> None:
        hosted = self._replicas.get(number)
        if hosted is not None:
            self._scaling.stop_drained(hosted, now_ps)

    # requests on their way

    def _routed(self, position: int, at_ps: int, input_tokens: int) -> ReplicaId | None:
        if self._self_routing is not None or self._by_rule is not None:
            self._offer()
            if self._self_routing is not None:
                number = self._self_routing.quickest(input_tokens)
            elif self._by_rule is not None:
                self._asked.admit(at_ps, input_tokens)
                number = self._by_rule.route(position)
            return None if number == NOWHERE else self._replicas.names[number][1]
        return self._asked.route(at_ps, position, input_tokens, self._replicas.ready(self._entry_role))

    def _offer(self) -> None:
        """Tell a loop that routes by itself which replicas there are, where that has changed."""
        if not self._replicas.changed:
            return
        replicas = self._replicas
        if self._self_routing is not None:
            by_id = replicas.by_id
            self._self_routing.offer([(by_id[c.replica_id].number, c) for c in replicas.ready(Role.COMBINED)])
        if self._by_rule is not None:
            numbers = {replica_id: hosted.number for replica_id, hosted in replicas.by_id.items()}
            self._by_rule.offer_phases(replicas.ready(Role.PREFILL), replicas.ready(Role.DECODE), numbers)

    def _arrive(self, position: int, now_ps: int) -> None:
        """Route a request that did not come just now."""
        number = self.choose(position, now_ps, self._inputs[position], self._outputs[position])
        if number != NOWHERE:
            self._loop.submit(number, position, now_ps)
            hosted = self._replicas.get(number)
            if hosted is not None and hosted.governor is not None:
                self._governors.look(hosted, now_ps)

    def _start_over(self, position: int, now_ps: int) -> None:
        """Its replica failed: as if it had just come, but its time to first token runs on."""
        self._columns.first_token_ps[position] = self._columns.started_ps[position] = NOT_YET
        self._arrive(position, now_ps)

    def _send_kv(self, position: int, now_ps: int) -> None:
        self._offer()
        refused = self._kv.send(position, now_ps)
        if refused is not None:
            self._refused(refused, position, now_ps)

    def _refused(self, refused: TooLarge, position: int, now_ps: int) -> None:
        """It fits no decode replica: its KV cache is thrown away."""
        if refused.target is not None:
            self._dropped(position, refused.target.number)
        self._lose(position, now_ps)
        source = self._kv.source(position)
        if source is not None:
            source.engine.kv_left()
            self._scaling.stop_drained(source, now_ps)

    def _lose(self, position: int, now_ps: int) -> None:
        self._columns.finished_ps[position] = NOT_YET
        self._lost += 1
        self._now_ps = max(self._now_ps, now_ps)

    def _dropped(self, position: int, number: int) -> None:
        """A replica will not serve a request that was sent there."""
        if self._by_rule is not None:
            self._by_rule.dropped(number, position)
        self._asked.dropped(position, self._replicas.names[number][1])

    def _dispatch_waiting(self) -> None:
        waiting, self._backlog = self._backlog, []
        for position in waiting:
            self._arrive(position, self._now_ps)
        handovers, self._kv.waiting = self._kv.waiting, []
        for position in handovers:
            if self._kv.source(position) is None:
                self._start_over(position, self._now_ps)
            else:
                self._send_kv(position, self._now_ps)

    # events

    def _handle(self, kind: Event, number: int) -> None:
        self._asked.tell()
        match kind:
            case Event.READY:
                if self._scaling.started(number):
                    self._dispatch_waiting()
            case Event.FAILURE:
                self._fail(self._failures[number])
            case Event.REPAIR:
                self._scaling.repair(number)
            case Event.CONTROL:
                self._control()
            case Event.GOVERN:
                self._govern()
            case Event.SAMPLE:
                self._sampling.take(self._now_ps, self._in_flight)
                self._events.push(self._now_ps + self._sample_ps, Event.SAMPLE)

    def _fail(self, failure: NodeFailure) -> None:
        """Requests of replicas on the node start over elsewhere."""
        orphans = self._scaling.fail(failure, self._now_ps)
        for lost in orphans:
            for position in lost.positions:
                self._asked.dropped(position, lost.replica_id)
        for lost in orphans:
            for position in lost.positions:
                self._start_over(position, self._now_ps)

    def _control(self) -> None:
        now_s = self._now_ps / PS_PER_S
        step = self._asked.step(now_s, self._views.at(self._now_ps))
        for action in step.actions:
            self._decisions.append((now_s, action))
            self._act(action)
        self._refuse_to_wait_for_ever()
        if self._backlog or self._kv.waiting:
            self._dispatch_waiting()
        self._events.push(max(self._now_ps + 1, round(step.wake_at_s * PS_PER_S)), Event.CONTROL)

    def _act(self, action: Action) -> None:
        match action:
            case SetReplicas():
                self._scale(action)
            case SetFrequency():
                hosted = self._replicas.by_id.get(action.replica_id)
                if hosted is not None:
                    self._loop.set_clock(hosted.number, self._now_ps, action.freq_mhz)
            case SetGovernor():
                hosted = self._replicas.by_id.get(action.replica_id)
                if hosted is not None:
                    self._governors.bound(hosted, action, self._now_ps)
            case SetPowerLimit():
                self._refuse_power_limit(action)
            case SetGpuBudget():
                pass

    def _scale(self, action: SetReplicas, warm: bool = False) -> None:
        if (action.role is Role.COMBINED) == self._fleet.splits_phases:
            apart = "apart" if self._fleet.splits_phases else "together"
            raise ValueError(f"SetReplicas for {action.pool} has role {action.role}, but phases are {apart}")
        self._scaling.scale(action, self._now_ps, warm)
        if not self._governing and any(hosted.governor for hosted in self._replicas):
            self._governing = True
            self._events.push((self._now_ps // TICK_PS + 1) * TICK_PS, Event.GOVERN)

    def _govern(self) -> None:
        """Every second each governor is asked."""
        self._asked.tell()
        governed = [hosted for hosted in self._replicas if hosted.governor is not None]
        running = [hosted for hosted in governed if hosted.state is not ReplicaState.STARTING]
        self._governors.look_at_all(running, self._now_ps)
        self._governing = bool(governed)
        if governed:
            self._events.push(self._now_ps + TICK_PS, Event.GOVERN)

    def _refuse_power_limit(self, action: SetPowerLimit) -> None:
        limit_w = self._profile.gpu.power_limit_w
        if action.power_w is not None and action.power_w < limit_w:
            raise ValueError(
                f"SetPowerLimit for {action.replica_id}: power_w {action.power_w} is below the GPU's {limit_w}, and no "
                f"iteration times are known under such a limit; set a clock instead"
            )

    def _refuse_to_wait_for_ever(self) -> None:
        if self._loop.arrived < len(self._trace):
            return
        for waiting, role in ((self._backlog, self._entry_role), (self._kv.waiting, Role.DECODE)):
            if not waiting or any(hosted.role is role for hosted in self._replicas):
                continue
            waited_s = (self._now_ps - self._columns.arrival_ps[waiting[0]]) / PS_PER_S
            if waited_s > _STUCK_S:
                raise RuntimeError(
                    f"{len(waiting)} requests have waited for {waited_s:.0f} s and the fleet runs no {role} replica"
                )

    def _outcome(self, complete: bool) -> Simulated:
        now_ps, sampling = self._now_ps, self._sampling
        if now_ps > sampling.sampled_ps:
            sampling.take(now_ps, self._in_flight)
        self._gaps.fold()
        return Simulated(
            trace=self._trace,
            columns=self._columns,
            replicas=tuple(self._replicas.names),
            gaps=self._gaps,
            lost=self._lost + self._loop.lost + len(self._backlog) + len(self._kv.waiting),
            complete=complete,
            energy_j=sampling.metered_wps / PS_PER_S,
            idle_gpu_energy_j=self._billing.idle_wps / PS_PER_S,
            ends_s=now_ps / PS_PER_S,
            gpu_hours=self._billing.held_gpu_ps(self._replicas, now_ps) / PS_PER_S / 3600,
            instances_peak=self._replicas.peak,
            reconfigurations=self._scaling.reconfigurations,
            samples=tuple(sampling.samples),
            decisions=tuple(self._decisions),
        )


def warm_up(profile: MachineProfile, trace: Trace, fleet: Fleet) -> None:
    """Load what a run of this trace will need, or compile it where that never happened: not a run's own time. The
    ``fleet`` is used up."""
    if int(trace.output_tokens.sum()) >= COMPILED_FROM_TOKENS:
        first = Trace(trace.arrival_ps[:1], trace.input_tokens[:1], trace.output_tokens[:1])
        SimulatedCluster(profile, None, fleet, engine="compiled").run(first)
