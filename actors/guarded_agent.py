"""The GPU frequency agent of a node whose clocks gpud sets: carries owners' wishes there and readings back.

Leases, epochs and restoration are gpud's; the agent adds what needs the cluster: minimum dwell, metrics, and word of
GPUs that heat or power hold down. It asks gpud in threads, so that a gpud that is stopped stalls nobody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from actors import metrics
from actors.gpu.dwell import Dwell
from actors.gpu.gpud_client import GpudClient, GpudError, Granted
from actors.gpu.gpud_wire import ErrorKind
from actors.gpu.headroom import HeadroomWatch, LostHeadroom
from actors.gpu.own_gpud import OwnGpudKeeper
from actors.messages import GpuReading, Held
from control_plane.leases import Hold, StaleEpochError

log = logging.getLogger(__name__)

MOST_CLIENTS = 32

Tell = Callable[[tuple[LostHeadroom, ...], tuple[LostHeadroom, ...]], Awaitable[None]]
"""(GPUs that are held down now, GPUs that are not any more) → to whom it matters."""


class Shadow(Protocol):
    """Simulated work on real clocks: told the clocks that the GPUs run at."""

    def follow(self, clocks_mhz: Mapping[str, int]) -> None: ...


class GuardedGpuAgent:
    """One per node, pinned to it. Where ``control`` is "recommend" nothing is ever asked of gpud but readings."""

    tick_s = 1.0

    def __init__(
        self,
        node_id: str,
        client: GpudClient,
        keeper: OwnGpudKeeper | None,
        control: Literal["act", "recommend"],
        tell: Tell,
        monotonic_s: Callable[[], float],
        shadow: Shadow | None = None,
    ) -> None:
        """``keeper``: of a gpud that this agent starts; None where the node has one."""
        self.node_id = node_id
        self._client, self._keeper, self._tell, self._shadow = client, keeper, tell, shadow
        self._acts = control == "act"
        self._monotonic_s = monotonic_s
        self._dwell, self._headroom = Dwell(), HeadroomWatch()
        self._rows: tuple[dict[str, Any], ...] = ()
        self._energy_seen_j: dict[str, float] = {}
        self._told: set[str] = set()
        self._clients: dict[str, GpudClient] = {}

    async def hold(self, owner: str, wanted: Mapping[str, Hold], ttl_s: float, epoch: int = 0) -> Held:
        """These are all the GPUs that ``owner`` wants held, by UUID, for ``ttl_s`` from now: its other leases end.
        Repeating it renews. Returns what is in force now on each of these GPUs, and why the others were refused.

        Raises StaleEpochError and ValueError for a time to live or an owner that gpud refuses.
        """
        if not self._acts:
            allowed = {row["uuid"]: _allowed_mhz(row) for row in self._rows}
            return Held({uuid: allowed[uuid] for uuid in wanted if uuid in allowed}, {})
        asked = self._dwell.steadied(owner, wanted, self._monotonic_s())
        try:
            client = self._client_of(owner)
            answer = await asyncio.to_thread(client.lock, owner, asked, ttl_s, epoch, "", True)
        except GpudError as error:
            if error.kind == ErrorKind.STALE_EPOCH:
                raise StaleEpochError(str(error)) from None
            if error.kind in (ErrorKind.OUT_OF_BOUNDS, ErrorKind.BAD_REQUEST):
                raise ValueError(str(error)) from None
            return Held({}, dict.fromkeys(wanted, str(error)))
        return self._held(answer)

    async def hold_schedule(self, owner: str, uuids: Sequence[str], ttl_s: float, epoch: int = 0) -> bool:
        """``owner`` drives the clocks of these GPUs itself, through gpud, for ``ttl_s`` from now. Returns whether
        clocks may be set at all. Raises ValueError where it may not have one of them."""
        if not self._acts:
            return False
        client = self._client_of(owner)
        answer = await asyncio.to_thread(client.schedule, owner, list(uuids), ttl_s, epoch)
        if answer.refused:
            told = "; ".join(refusal.message for refusal in answer.refused.values())
            raise ValueError(f"node {self.node_id}, for {owner}: {told}")
        return not any(granted.get("dry_run") for granted in answer.granted.values())

    async def release(self, owner: str, uuids: Sequence[str] | None = None) -> None:
        """The owner's leases on these GPUs, or all of them, go back to full clock."""
        self._dwell.forget(owner)
        if self._acts:
            await asyncio.to_thread(self._client_of(owner).reset, owner, uuids, "released")

    async def reset_all(self) -> None:
        """Every clock back to full, whoever holds it."""
        if self._acts:
            await asyncio.to_thread(self._client.reset, None, None, "the control plane resets every clock")

    def readings(self) -> tuple[GpuReading, ...]:
        """Every GPU that answered at the last tick; one that is lost is left out and the others stay."""
        return tuple(_reading(row) for row in self._rows if row["clock_mhz"] is not None and row["power_w"] is not None)

    def energy_j(self) -> float:
        """Sum of this node's GPU energy since gpud started."""
        return sum(reading.energy_j for reading in self.readings())

    async def leases(self) -> dict[str, tuple[str, int]]:
        """Who holds which GPU, and the highest clock that it may take now."""
        await self._look()
        return {row["uuid"]: (row["lease"]["owner"], _allowed_mhz(row)) for row in self._rows if row["lease"]}

    async def tick(self) -> None:
        """Look after gpud, read, publish, and tell of GPUs that are held down."""
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.look_after)
        if not await self._look():
            return
        if self._shadow is not None:
            clocks = {row["uuid"]: row["clock_mhz"] for row in self._rows if row["clock_mhz"] is not None}
            await asyncio.to_thread(self._shadow.follow, clocks)
        for reading in self.readings():
            before_j = self._energy_seen_j.get(reading.uuid, reading.energy_j)
            self._energy_seen_j[reading.uuid] = reading.energy_j
            # A gpud that was started anew counts from zero.
            metrics.gpu(reading, max(0.0, reading.energy_j - before_j))
        lost, back = self._headroom.changes(self._rows)
        if lost or back:
            await self._tell(lost, back)

    async def _look(self) -> bool:
        """Whether gpud told how the GPUs are."""
        try:
            answer = await asyncio.to_thread(self._client.read, None, self.tick_s / 2)
        except GpudError as error:
            self._say_once(f"gpud: {error}")
            self._rows = ()
            return False
        self._rows = tuple(answer["gpus"])
        state = answer["gpud"]
        if state["state"] == "ok":
            self._told.clear()
        else:
            self._say_once(f"gpud is {state['state']}: {state['why']}")
        return True

    def _client_of(self, owner: str) -> GpudClient:
        """A connection per owner: one that waits for a hung GPU keeps no other waiting."""
        if owner not in self._clients:
            while len(self._clients) >= MOST_CLIENTS:
                self._clients.pop(next(iter(self._clients))).close()
            self._clients[owner] = GpudClient(self._client.path)
        return self._clients[owner]

    def _held(self, answer: Granted) -> Held:
        clocks = {row["uuid"]: row["clocks_mhz"] for row in self._rows}
        in_force: dict[str, int] = {}
        refused = {uuid: refusal.message for uuid, refusal in answer.refused.items()}
        for uuid, granted in answer.granted.items():
            if granted["verdict"] == "stuck":
                refused[uuid] = f"stuck: it runs at {granted.get('runs_mhz')} MHz above {granted['max_mhz']} MHz"
            elif granted["max_mhz"] is not None:
                in_force[uuid] = granted["max_mhz"]
            elif clocks.get(uuid):
                in_force[uuid] = clocks[uuid][-1]
        return Held(in_force, refused)

    def _say_once(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("node %s: %s", self.node_id, what)


def _allowed_mhz(row: Mapping[str, Any]) -> int:
    highest = row["clocks_mhz"][-1] if row["clocks_mhz"] else row["clock_mhz"] or 0
    return int(row["max_mhz"] or highest)


def _reading(row: Mapping[str, Any]) -> GpuReading:
    lease, energy = row["lease"], row["energy"]
    return GpuReading(
        row["uuid"],
        row["clock_mhz"],
        _allowed_mhz(row),
        row["power_w"],
        energy["total_j"] if energy else 0.0,
        None if lease is None else lease["owner"],
        tuple(row["events"] or ()),
        None if lease is None else lease["age_s"],
    )
