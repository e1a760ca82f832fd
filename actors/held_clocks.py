"""The clocks and power limits that a pool wants for its replicas, held at the nodes' agents under leases."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from actors.decision_log import DecisionLog
from actors.messages import Held, ReplicaReport
from control_plane.domain import ReplicaId, ReplicaState
from control_plane.leases import DEFAULT, Hold

log = logging.getLogger(__name__)


HoldGpus = Callable[[str, str, Mapping[str, Hold], float, int], Awaitable[Held]]
"""(node id, owner, holds by GPU UUID, TTL in seconds, epoch of the owner) → what is in force."""


@dataclass(slots=True)
class _Held:
    """What is wanted of one replica, and what was noted of it last."""

    wish: Hold = DEFAULT
    why: str = ""
    noted: tuple[Hold, str] = field(default=(DEFAULT, ""))


class HeldClocks:
    """Repeating ``renew`` keeps the leases; a decision is noted once the agents have said what is in force."""

    def __init__(
        self, owner: str, hold: HoldGpus, ttl_s: float, epoch: int, acts: bool, decisions: DecisionLog
    ) -> None:
        """``epoch``: of two owners of the same name the agents believe the one with the higher."""
        self._owner, self._hold, self._ttl_s, self._epoch = owner, hold, ttl_s, epoch
        self._acts, self._log = acts, decisions
        self._wanted: dict[ReplicaId, _Held] = {}
        self._in_force_mhz: dict[ReplicaId, int] = {}

    def want_freq(self, replica_id: ReplicaId, freq_mhz: int, why: str) -> None:
        held = self._wanted.setdefault(replica_id, _Held())
        held.wish, held.why = replace(held.wish, freq_mhz=freq_mhz), why

    def want_power(self, replica_id: ReplicaId, power_w: float | None, why: str) -> None:
        held = self._wanted.setdefault(replica_id, _Held())
        held.wish, held.why = replace(held.wish, power_w=power_w), why

    def let_go(self) -> None:
        """Nothing is wanted any more: the next renewal ends every lease."""
        self._wanted.clear()

    def forget(self, replica_id: ReplicaId) -> None:
        self._wanted.pop(replica_id, None)
        self._in_force_mhz.pop(replica_id, None)

    def wishes(self) -> dict[ReplicaId, Hold]:
        return {replica_id: held.wish for replica_id, held in self._wanted.items() if held.wish != DEFAULT}

    def wished_mhz(self) -> dict[str, int]:
        return {str(r): wish.freq_mhz for r, wish in self.wishes().items() if wish.freq_mhz is not None}

    def in_force_mhz(self, replica_id: ReplicaId) -> int | None:
        """The highest clock that its agent last said the replica's slowest GPU may take."""
        return self._in_force_mhz.get(replica_id)

    async def renew(self, replicas: Iterable[ReplicaReport]) -> None:
        """Send every wish to its node's agent again; an agent that does not answer is left for the next time."""
        ready = [report for report in replicas if report.state is ReplicaState.READY]
        wishes = self.wishes()
        by_node: dict[str, dict[str, Hold]] = {}
        for report in ready:
            mine = by_node.setdefault(report.node_id, {})
            if report.replica_id in wishes:
                mine.update(dict.fromkeys(report.gpu_uuids, wishes[report.replica_id]))
        answers = await asyncio.gather(
            *(self._hold(node, self._owner, mine, self._ttl_s, self._epoch) for node, mine in by_node.items()),
            return_exceptions=True,
        )
        in_force: dict[str, int] = {}
        refused: dict[str, str] = {}
        for node, answer in zip(by_node, answers, strict=True):
            if isinstance(answer, BaseException):
                log.warning("%s: the agent of node %s does not answer: %r", self._owner, node, answer)
            else:
                in_force.update(answer.in_force_mhz)
                refused.update(answer.refused)
        for report in ready:
            self._learn(report, in_force, refused)

    def _learn(self, report: ReplicaReport, in_force: Mapping[str, int], refused: Mapping[str, str]) -> None:
        clocks = [in_force[uuid] for uuid in report.gpu_uuids if uuid in in_force]
        if clocks:
            self._in_force_mhz[report.replica_id] = min(clocks)
        held = self._wanted.get(report.replica_id)
        if held is None:
            return
        whys = [f"{uuid}: {refused[uuid]}" for uuid in report.gpu_uuids if uuid in refused]
        outcome = f"failed: {whys[0]}" if whys else self._outcome(held.wish, clocks, len(report.gpu_uuids))
        if held.noted != (held.wish, outcome):
            held.noted = (held.wish, outcome)
            self._log.note(_text(report.replica_id, held.wish), held.why, outcome)

    def _outcome(self, wish: Hold, clocks: list[int], gpus: int) -> str:
        if not self._acts:
            return "recommended"
        if len(clocks) < gpus:
            return f"failed: the agent answers for {len(clocks)} of {gpus} GPUs"
        if wish.freq_mhz is not None and max(clocks) > wish.freq_mhz:
            return f"failed: the GPUs may take {max(clocks)} MHz"
        return "done"


def _text(replica_id: ReplicaId, wish: Hold) -> str:
    parts = [f"{wish.freq_mhz} MHz"] if wish.freq_mhz is not None else []
    parts += [f"{wish.power_w:.0f} W"] if wish.power_w is not None else []
    return f"{replica_id} → {', '.join(parts) or 'full clock'}"
