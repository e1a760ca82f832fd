"""Where a user's rank finds its planner, its GPU and the right to set that GPU's clock.

Three places, tried in this order: the control plane of the Ray that this process belongs to; the node's gpud, with a
planner inside the job; nothing but the driver, with a planner inside the job whose plans are only recommended.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.gpu.gpud_client import GpudClient, GpudError
from actors.gpu.gpud_wire import default_socket
from actors.gpu.guarded_node import GuardedNode
from actors.gpu.node_record import NodeRecord
from actors.gpu.simulated import SimulatedNode
from actors.training_messages import job_of_owner
from train_jobs.charged_gpu import ChargedGpu
from train_jobs.claims import WAIT_MORE_S, claim
from train_jobs.schedule_lease import LeaseRefusedError, ScheduleLease
from train_jobs.scheduled_clock import ClockControl

log = logging.getLogger(__name__)

SIMULATED_GPUS_VARIABLE = "WATTRAY_SIMULATED_GPUS"
"""A simulated node's file: where ranks are charged without a control plane, as under plain torchrun."""
LEASE_TTL_S = 15.0
TTL_VARIABLE = "WATTRAY_LEASE_TTL_S"

Call = Callable[..., "Future[Any]"]


@dataclass(frozen=True, slots=True)
class RankGpu:
    """What a rank got. ``charged`` is None for a real GPU; ``lease`` is None where clocks are only recommended."""

    uuid: str
    charged: ChargedGpu | None
    lease: ScheduleLease | None
    slow_to_set: bool
    """Setting its clock takes milliseconds, so it is left to a thread."""
    release: Callable[[], None]
    control: ClockControl | None = None
    """Of a real GPU whose clock may be set."""


class Plane(Protocol):
    """One of the places."""

    @property
    def has_real_gpus(self) -> bool:
        """A rank has the one that torch computes on."""
        ...

    def claim(self, owner: str, ranks: int) -> tuple[str, ...]:
        """UUIDs of simulated GPUs for so many ranks, in their order, leased to this run; asked by one rank for all.
        Raises LeaseRefusedError, JobError."""
        ...

    def open(self, owner: str, uuid: str) -> RankGpu:
        """Raises LeaseRefusedError where the GPU is another's."""
        ...

    def planner(self) -> tuple[Call, Callable[[], None]]:
        """How to call it, and what ends it; asked by the rank that leads."""
        ...


def find_plane() -> Plane:
    """The first of the places that is there."""
    from train_jobs.ray_plane import RayPlane, belongs_to_ray

    if belongs_to_ray():
        site = RayPlane.find()
        if site is not None:
            return site
    socket = default_socket()
    if socket.exists():
        return GpudPlane(socket)
    return AlonePlane()


def _local_planner() -> tuple[Call, Callable[[], None]]:
    from train_jobs.local_planner import LocalPlanner

    planner = LocalPlanner()
    return planner.call, planner.close


class GpudPlane:
    """The node's gpud."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._file = os.environ.get(SIMULATED_GPUS_VARIABLE)
        self.has_real_gpus = self._file is None

        self._ttl_s = float(os.environ.get(TTL_VARIABLE, LEASE_TTL_S))

    def claim(self, owner: str, ranks: int) -> tuple[str, ...]:
        from train_jobs.job import JobError

        client = GpudClient(self._socket)
        try:
            uuids = tuple(row["uuid"] for row in client.read(max_age_s=3600.0)["gpus"])
            if len(uuids) < ranks:
                raise JobError(
                    f"job {job_of_owner(owner)} has {ranks} ranks; gpud at {self._socket} has {len(uuids)} GPUs: "
                    "start fewer"
                )
            return claim(owner, ranks, uuids, GpudLeases(client, self._ttl_s), self._ttl_s + WAIT_MORE_S)
        finally:
            client.close()

    def open(self, owner: str, uuid: str) -> RankGpu:
        client, ttl_s = GpudClient(self._socket), self._ttl_s
        rows = client.read(max_age_s=3600.0)["gpus"]
        leases = GpudLeases(client, ttl_s)
        claim(owner, 1, (uuid,), leases, ttl_s + WAIT_MORE_S)
        # The client has a time limit of its own.
        lease = ScheduleLease(lambda _: leases.renew(owner, (uuid,)), ttl_s)
        charged = None
        if self._file is not None:
            record = NodeRecord("simulated", str(self._socket), tuple(row["uuid"] for row in rows))
            charged = ChargedGpu(GuardedNode(Path(self._file), record, owner), record.uuids.index(uuid))

        def release() -> None:
            if charged is not None:
                charged.close()
            try:
                client.reset(owner, [uuid], "training has ended")
            except GpudError as error:
                log.warning("gpud does not answer; the lease of %s will lapse: %s", owner, error)
            client.close()

        control = GpudClock(client, owner, uuid, rows) if charged is None else None
        return RankGpu(uuid, charged, lease, True, release, control)

    def planner(self) -> tuple[Call, Callable[[], None]]:
        return _local_planner()


class AlonePlane:
    """No gpud, no control plane. With simulated GPUs they are charged and stay at full clock."""

    def __init__(self) -> None:
        self.has_real_gpus = SIMULATED_GPUS_VARIABLE not in os.environ

    def claim(self, owner: str, ranks: int) -> tuple[str, ...]:
        from train_jobs.job import JobError

        path = os.environ.get(SIMULATED_GPUS_VARIABLE)
        if path is None:
            return ("",) * ranks
        node = SimulatedNode(Path(path))
        try:
            if node.count < ranks:
                raise JobError(
                    f"job {job_of_owner(owner)} has {ranks} ranks; {path} has {node.count} simulated GPUs: start fewer"
                )
            return tuple(node.uuid_of(index) for index in range(ranks))
        finally:
            node.close()

    def open(self, owner: str, uuid: str) -> RankGpu:
        del owner
        path = os.environ.get(SIMULATED_GPUS_VARIABLE)
        if path is None:
            return RankGpu(uuid, None, None, True, lambda: None)
        node = SimulatedNode(Path(path))
        charged = ChargedGpu(node, node.index_of(uuid))
        return RankGpu(uuid, charged, None, False, charged.close)

    def planner(self) -> tuple[Call, Callable[[], None]]:
        return _local_planner()


class GpudClock:
    """A real GPU's, through gpud."""

    def __init__(self, client: GpudClient, owner: str, uuid: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._client, self._owner, self._uuid = client, owner, uuid
        self._full_mhz = next((row["clocks_mhz"][-1] for row in rows if row["uuid"] == uuid and row["clocks_mhz"]), 0)
        self._asked_mhz = self._full_mhz

    def set_clock(self, freq_mhz: int, at_ns: int) -> None:
        """Now, whatever moment was asked for. Raises GpudError."""
        del at_ns
        refused = self._client.set(self._owner, {self._uuid: None if freq_mhz >= self._full_mhz else freq_mhz}).refused
        for refusal in refused.values():
            log.error("GPU %s is not set to %d MHz: %s", self._uuid, freq_mhz, refusal.message)
        self._asked_mhz = freq_mhz

    def target_mhz(self) -> int:
        return self._asked_mhz


class GpudLeases:
    """Kept by a node's gpud."""

    def __init__(self, client: GpudClient, ttl_s: float) -> None:
        self._client, self._ttl_s = client, ttl_s

    def owners(self) -> Mapping[str, str]:
        rows = self._client.read(max_age_s=3600.0)["gpus"]
        return {row["uuid"]: row["lease"]["owner"] for row in rows if row["lease"]}

    def take(self, owner: str, uuids: Sequence[str]) -> None:
        self.renew(owner, uuids)

    def renew(self, owner: str, uuids: Sequence[str]) -> bool:
        """Whether clocks may be set. Raises LeaseRefusedError."""
        answer = self._client.schedule(owner, list(uuids), self._ttl_s)
        if answer.refused:
            raise LeaseRefusedError("; ".join(refusal.message for refusal in answer.refused.values()))
        return not any(granted.get("dry_run") for granted in answer.granted.values())

    def release(self, owner: str, uuids: Sequence[str]) -> None:
        self._client.reset(owner, list(uuids), "another run of the job was quicker")
