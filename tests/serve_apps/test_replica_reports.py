"""What a replica says of itself, and what it does with the answer."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.gpu.simulated import SimulatedNode
from actors.messages import Orders, ReplicaReport
from control_plane.domain import PoolName, ReplicaId, ReplicaState, Role
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.ports import GpuLostError
from control_plane.serving.policy import Needs
from control_plane.settings import Settings
from serve_apps import replica as replica_module
from serve_apps.control_actors import ControlActors
from serve_apps.engines.factory import make_engine
from serve_apps.engines.protocol import GenerateRequest
from serve_apps.latencies import Latencies
from serve_apps.replica import ReplicaAccount, ReplicaReports, Seat

PROFILE = load_profile(DEFAULT_PROFILE)
POOL = PoolName("long")
SEAT = Seat(ReplicaId("r0"), POOL, 2, Role.DECODE, "node", ("GPU-0", "GPU-1"))
EVERYTHING = Needs(kv_use=True, queued_tokens=True, power=True, latencies=True)


def account_of(node: SimulatedNode, needs: Needs, latencies: Latencies) -> tuple[ReplicaAccount, Any]:
    engine = make_engine(Settings(), PROFILE, 2, Role.DECODE, node, range(2))
    gpus: Any = (node.gpu(0), node.gpu(1))
    return ReplicaAccount(SEAT, engine, gpus, needs, latencies), engine


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    return SimulatedNode.create(tmp_path / "gpus.bin", 2, PROFILE.gpu)


def test_a_replica_that_loads_says_that_it_is_starting(node: SimulatedNode) -> None:
    async def run() -> tuple[ReplicaReport, ReplicaReport]:
        account, engine = account_of(node, Needs(), Latencies(lambda: 0.0))
        starting = account.report()
        await engine.load()
        account.state = ReplicaState.READY
        ready = account.report()
        await engine.shutdown()
        return starting, ready

    starting, ready = asyncio.run(run())
    assert (starting.state, ready.state) == (ReplicaState.STARTING, ReplicaState.READY)
    assert (ready.role, ready.tp, ready.gpu_uuids) == (Role.DECODE, 2, ("GPU-0", "GPU-1"))
    assert ready.freq_mhz == 1980
    assert ready.kv_used_ratio is ready.queued_tokens is ready.power_w is ready.ttft_p99_s is None


def test_it_says_what_the_policy_needs_to_see(node: SimulatedNode) -> None:
    now = [100.0]

    async def run() -> ReplicaReport:
        latencies = Latencies(lambda: now[0])
        latencies.ended(9.0, 9.0)
        now[0] = 200.0
        for i in range(1, 101):
            latencies.ended(i / 100, i / 1000 if i > 1 else None)
        account, engine = account_of(node, EVERYTHING, latencies)
        await engine.load()
        long = engine.generate(GenerateRequest("q", "", 9000, 9, ttft_limit_s=2.0))
        first = asyncio.ensure_future(anext(long))
        await asyncio.sleep(0.01)
        node.lock_freq(1, 900)
        await asyncio.sleep(0.06)
        report = account.report()
        first.cancel()
        await engine.shutdown()
        return report

    report = asyncio.run(run())
    assert report.kv_used_ratio is not None
    assert 0.1 < report.kv_used_ratio < 0.3
    assert report.queued_tokens is not None
    assert report.queued_tokens > 5000
    assert report.tightest_slack_s is not None
    assert 1.5 < report.tightest_slack_s < 2.0
    assert report.power_w is not None
    assert report.power_w > 2 * PROFILE.gpu.context_w
    assert report.freq_mhz == 900
    assert (report.ttft_p99_s, report.tbt_p99_s) == (0.99, 0.1)


def test_a_gpu_that_cannot_be_read_leaves_its_part_out(node: SimulatedNode) -> None:
    class Lost:
        def freq_mhz(self) -> int:
            raise GpuLostError("GPU-1 has fallen off the bus")

        power_w = freq_mhz

    engine = make_engine(Settings(), PROFILE, 2, Role.COMBINED, node, range(2))
    gpus: Any = (node.gpu(0), Lost())
    report = ReplicaAccount(SEAT, engine, gpus, EVERYTHING, Latencies(lambda: 0.0)).report()
    assert report.freq_mhz is None
    assert report.power_w is None
    assert report.state is ReplicaState.STARTING


class Manager:
    """A pool manager's handle that answers with orders."""

    def __init__(self, answer: Orders | None) -> None:
        self.answer, self.reports, self.broken = answer, 0, False

    def __getattr__(self, method: str) -> Any:
        assert method == "report"

        async def remote(report: ReplicaReport) -> Orders | None:
            self.reports += 1
            if self.broken:
                raise KeyError("a bug of the manager")
            return self.answer

        return type("Method", (), {"remote": staticmethod(remote)})


class OrderedGovernor:
    def __init__(self) -> None:
        self.orders: list[Orders] = []

    def order(self, orders: Orders) -> None:
        self.orders.append(orders)


def test_the_managers_orders_reach_the_governor_and_no_error_ends_the_reports(
    node: SimulatedNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replica_module, "REPORT_S", 0.005)

    async def run() -> None:
        account, _ = account_of(node, Needs(), Latencies(lambda: 0.0))
        manager, governor = Manager(Orders(600, 1200)), OrderedGovernor()
        host: Any = governor
        reports = ReplicaReports(account, POOL, ControlActors(lambda name: manager), host)
        manager.broken = True
        running = asyncio.create_task(reports.run())

        async def until(claim: Callable[[], bool]) -> None:
            async with asyncio.timeout(20):
                while not claim():
                    assert not running.done()
                    await asyncio.sleep(0.005)

        await until(lambda: manager.reports > 2)
        assert governor.orders == []
        manager.broken = False
        await until(lambda: bool(governor.orders))
        assert set(governor.orders) == {Orders(600, 1200)}
        manager.answer = None
        before = manager.reports
        await until(lambda: manager.reports > before)
        running.cancel()

    asyncio.run(run())
    assert "a bug of the manager" in caplog.text


def test_percentiles_forget_what_is_older_than_a_minute() -> None:
    now = [0.0]
    latencies = Latencies(lambda: now[0])
    assert latencies.p99() == (None, None)
    latencies.ended(5.0, None)
    assert latencies.p99() == (5.0, None)
    now[0] = 61.0
    assert latencies.p99() == (None, None)
