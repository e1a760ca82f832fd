"""A whole replica without Ray: a real engine on simulated GPUs, a real agent, a toy policy with a governor, and a
manager that takes notes."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.gpu.drivers import create_node
from actors.gpu.simulated import SimulatedNode
from actors.gpu_agent import GpuAgent
from actors.messages import Held, Orders, ReplicaReport
from actors.runtime import Installation, run_folder
from control_plane.domain import PoolName, QueueView, ReplicaState, Role
from control_plane.hardware.gpu_model import H100_SXM
from control_plane.leases import Hold
from control_plane.serving.policies import registry
from control_plane.serving.policies.combined import CombinedPolicy
from control_plane.serving.policy import Governor, Needs
from control_plane.settings import parse_settings
from serve_apps import replica as replica_module
from serve_apps import replica_gpus
from serve_apps.engines.protocol import Chunk, GenerateRequest
from serve_apps.replica import ModelReplica

POOL = PoolName("long")


class FullClockWhileBusy:
    def look(self, queue: QueueView, now_s: float) -> int:
        return 1980 if queue.queued or queue.decoding else 1200


class ToyPolicy(CombinedPolicy):
    needs = Needs(kv_use=True)

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return FullClockWhileBusy()


class Site:
    """The named actors that the replica calls, the agent a real one."""

    def __init__(self, node: SimulatedNode) -> None:
        self.agent = GpuAgent("n", lambda: node, "act", lambda: 0.0)
        self.reports: list[ReplicaReport] = []
        self.orders = Orders()

    def look_up(self, name: str) -> Any:
        assert name in ("pool_manager:long", "gpu_agent:n")

        async def report(told: ReplicaReport) -> Orders:
            self.reports.append(told)
            return self.orders

        async def hold(owner: str, holds: dict[str, Hold], ttl_s: float) -> Held:
            return self.agent.hold(owner, holds, ttl_s)

        return SimpleNamespace(report=SimpleNamespace(remote=report), hold=SimpleNamespace(remote=hold))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedNode]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(replica_module, "REPORT_S", 0.02)
    monkeypatch.setitem(registry.POLICIES, "toy", ToyPolicy)  # type: ignore[arg-type]
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["0", "1"]}, get_node_id=lambda: "n")
    monkeypatch.setattr(replica_gpus.ray, "get_runtime_context", lambda: context)
    replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r0"))
    monkeypatch.setattr(replica_module.serve, "get_replica_context", lambda: replica)
    made = create_node("simulated", run_folder("run"), "n", 2, H100_SXM)
    assert isinstance(made, SimulatedNode)
    yield made
    made.close()


def deployment(**serve: object) -> Installation:
    settings = parse_settings({"policy": "toy", "serve": serve, "sharding": {"startup_s": 0.1}})
    return Installation(settings, "run", "http://none")


class HeldReplica(ModelReplica):
    def __del__(self) -> None:
        """Serve alone awaits the other one."""


async def started(given: Installation) -> ModelReplica:
    replica = HeldReplica.__new__(HeldReplica)
    await replica.__init__(given, POOL, 2, Role.COMBINED)  # type: ignore[misc]
    return replica


async def until(claim: Any) -> None:
    async with asyncio.timeout(3.0):
        while not claim():
            await asyncio.sleep(0.005)


def test_it_starts_serves_under_its_governor_and_drains(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(node)
    monkeypatch.setattr(replica_module.runtime, "actor", site.look_up)

    async def run() -> list[Chunk]:
        replica = await started(deployment(warm_start=False, stream_interval_s=0.02))
        assert {report.state for report in site.reports} == {ReplicaState.STARTING}
        await replica.check_health()
        await until(lambda: site.reports[-1].state is ReplicaState.READY)
        await until(lambda: node.gpu(0).freq_mhz() == node.gpu(1).freq_mhz() == 1200)
        owners = {owner for owner, _ in site.agent.leases().values()}
        assert owners == {"governor:r0"}

        chunks = []
        async for chunk in replica.generate(GenerateRequest("q", "", 200, 30), replica_id="r0"):
            chunks.append(chunk)
            if len(chunks) == 2:
                assert set(site.agent.leases().values()) == {("governor:r0", 1980)}
        await until(lambda: set(site.agent.leases().values()) == {("governor:r0", 1200)})

        site.orders = Orders(1395, 1980)
        await until(lambda: set(site.agent.leases().values()) == {("governor:r0", 1395)})
        seen = site.reports[-1]
        assert (seen.pool, seen.tp, seen.role, seen.node_id) == (POOL, 2, Role.COMBINED, "n")
        assert seen.kv_used_ratio == 0.0
        assert seen.power_w is None
        await replica.end()
        return chunks

    chunks = asyncio.run(run())
    assert sum(chunk.tokens for chunk in chunks) == 30
    assert node.gpu(0).power_w() < 100


def test_what_requests_are_told_adds_up_to_what_the_gpus_metered(
    node: SimulatedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(node)
    monkeypatch.setattr(replica_module.runtime, "actor", site.look_up)

    async def run() -> tuple[list[float], float]:
        replica = await started(deployment(warm_start=True, stream_interval_s=0.02))
        metered_j = -sum(node.gpu(i).energy_j() for i in (0, 1))
        idle_before_j = replica._energy.idle_j

        async def energy_of(number: int) -> float:
            await asyncio.sleep(0.05 * number)
            request = GenerateRequest(f"q{number}", "", 400 * (number + 1), 15)
            told = [chunk.energy_j async for chunk in replica.generate(request) if chunk.finish_reason is not None]
            assert told[0] is not None
            return told[0]

        told = list(await asyncio.gather(*(energy_of(number) for number in range(6))))
        metered_j += sum(node.gpu(i).energy_j() for i in (0, 1))
        idle_j = replica._energy.idle_j - idle_before_j
        await replica.end()
        return told, metered_j - idle_j

    told, metered_j = asyncio.run(run())
    assert min(told) > 0
    assert sum(told) == pytest.approx(metered_j, rel=0.03)


def test_a_failed_engine_fails_the_health_check_by_name(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(node)
    monkeypatch.setattr(replica_module.runtime, "actor", site.look_up)

    async def run() -> None:
        replica = await started(deployment())
        engine: Any = replica._engine

        def broken(freq_mhz: int) -> None:
            raise ZeroDivisionError("a bug of the engine")

        engine._model.begin = broken
        engine._work.set()
        await until(lambda: not engine.alive())
        with pytest.raises(RuntimeError, match=r"the engine has ended: ZeroDivisionError\('a bug of the engine'\)"):
            await replica.check_health()
        await replica.end()

    asyncio.run(run())
