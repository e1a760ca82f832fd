"""Starting, draining and stopping replicas, and what a failed node takes with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from control_plane.actions import SetReplicas
from control_plane.domain import PoolName, ReplicaId, ReplicaState, Role
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.serving.policy import Governor
from control_plane.simulation.cluster.billing import Billing
from control_plane.simulation.cluster.event_queue import Event, EventQueue
from control_plane.simulation.cluster.governors import Governors
from control_plane.simulation.cluster.gpu_slots import GpuSlots
from control_plane.simulation.cluster.replicas import Hosted, Replicas
from control_plane.simulation.cluster.times import ClusterTimes, NodeFailure
from control_plane.simulation.event_loop import NOWHERE, EventLoop


@dataclass(frozen=True, slots=True)
class Orphans:
    """Requests whose replica failed, in order of submission."""

    replica_id: ReplicaId
    positions: list[int]


class Scaling:
    """Replicas come and go here and nowhere else, so slots, bills and the event loop stay in step."""

    def __init__(
        self,
        tables: Mapping[int, ShapeTables],
        times: ClusterTimes,
        governor: Callable[[PoolName, int, Role], Governor | None],
        replicas: Replicas,
        slots: GpuSlots,
        billing: Billing,
        events: EventQueue,
        loop: EventLoop,
        governors: Governors,
    ) -> None:
        self._tables, self._times, self._governor = tables, times, governor
        self._replicas, self._slots, self._billing, self._events = replicas, slots, billing, events
        self._loop, self._governors = loop, governors
        self.reconfigurations = 0

    def scale(self, action: SetReplicas, now_ps: int, warm: bool = False) -> None:
        """Start what is missing, as far as GPUs are free; drain what is too many: first those that the action names,
        then who has not started, then who has least to do. ``warm``: they serve at once."""
        kind = action.pool, action.tp, action.role
        mine = [h for h in self._replicas if h.counts and (h.pool, h.tp, h.role) == kind]
        for _ in range(action.replicas - len(mine)):
            if not self._start(*kind, now_ps, warm):
                break
        rank = {replica_id: i for i, replica_id in enumerate(action.stop_first)}
        last = len(rank)
        surplus = sorted(
            mine,
            key=lambda h: (
                rank.get(h.replica_id, last),
                h.state is ReplicaState.READY,
                h.engine.waiting + h.engine.running,
                -h.engine.born_ps,
            ),
        )
        for hosted in surplus[: max(0, len(mine) - action.replicas)]:
            if hosted.state is ReplicaState.STARTING or hosted.empty:
                self.stop(hosted, now_ps)
            else:
                self._replicas.advance(hosted, ReplicaState.DRAINING)
                self._loop.drain(hosted.number)

    def started(self, number: int) -> bool:
        """A replica's start-up is over; False where it was stopped meanwhile."""
        hosted = self._replicas.get(number)
        if hosted is None or hosted.state is not ReplicaState.STARTING:
            return False
        self._replicas.advance(hosted, ReplicaState.READY)
        self._slots.loaded(hosted.nodes)
        return True

    def stop_drained(self, hosted: Hosted, now_ps: int) -> None:
        """Stop a replica that drains and has nothing left; leave any other as it is."""
        if hosted.state is ReplicaState.DRAINING and hosted.empty:
            self.stop(hosted, now_ps)

    def stop(self, hosted: Hosted, now_ps: int) -> None:
        self._billing.charge_idle(now_ps, self._slots.held)
        self._slots.give_back(hosted.nodes, hosted.state is not ReplicaState.STARTING)
        self._billing.stopped(hosted, now_ps)
        self._replicas.advance(hosted, ReplicaState.STOPPED)
        self._loop.remove(hosted.number)
        self.reconfigurations += 1

    def fail(self, failure: NodeFailure, now_ps: int) -> list[Orphans]:
        """Everything on the node is gone, and the node until its repair; whose requests these were."""
        self._slots.fail(failure.node)
        up_ps = now_ps + max(1, round(failure.down_s * PS_PER_S))
        self._events.push(up_ps, Event.REPAIR, failure.node)
        orphans: list[Orphans] = []
        for hosted in [h for h in self._replicas if failure.node in h.nodes]:
            orphans.append(Orphans(hosted.replica_id, hosted.engine.abandon(now_ps)))
            self.stop(hosted, now_ps)
        return orphans

    def repair(self, node: int) -> None:
        self._slots.repair(node)

    def _start(self, pool: PoolName, tp: int, role: Role, now_ps: int, warm: bool) -> bool:
        nodes = self._slots.take(tp)
        if nodes is None:
            return False
        self._billing.charge_idle(now_ps, self._slots.held - tp)
        number, tables = len(self._replicas.names), self._tables[tp]
        governor = self._governor(pool, tp, role)
        node = nodes[0] if len(set(nodes)) == 1 else NOWHERE
        engine = self._loop.place(number, tables, now_ps, role is Role.PREFILL, governor is not None, node)
        state = ReplicaState.READY if warm else ReplicaState.STARTING
        replica_id = ReplicaId(f"{pool}-tp{tp}-{number + 1}")
        kv_tokens = tables.limits.kv_tokens
        hosted = Hosted(number, replica_id, pool, tp, role, nodes, engine, state, kv_tokens, governor)
        self._replicas.add(hosted)
        self._governors.adopt(hosted)
        if warm:
            self._slots.loaded(nodes)
        else:
            self.reconfigurations += 1
            here = self._slots.hold_weights(nodes)
            start_s = self._times.weights_here_start_s if here else self._times.cold_start_s
            self._events.push(now_ps + round(start_s * PS_PER_S), Event.READY, number)
        return True
