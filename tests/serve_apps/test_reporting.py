"""What the router and the replicas tell control actors that are slow, away or broken."""

import asyncio
import threading
import time
from typing import Any

import pytest
import ray
from router_fakes import APP, PROFILE, RouterParts, ScriptedReplicas, router_of

from actors.messages import TenantUsage
from control_plane.domain import Load, ReplicaId
from control_plane.serving.arrival_log import Answers
from control_plane.serving.hosting import RouterHost
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import HandOver, RoutedRequest, Site
from control_plane.settings import Settings
from serve_apps import reporting, running_replicas
from serve_apps.control_actors import CallFailedError, ControlActors
from serve_apps.reporting import RouterReports
from serve_apps.usage_ledger import UsageLedger, Used


class FakeActor:
    """Stands for an actor's handle: ``handle.method.remote(*args)`` is awaited."""

    def __init__(self) -> None:
        self.got: list[tuple[str, tuple[Any, ...]]] = []
        self.raises: Exception | None = None
        self.takes_s = 0.0

    def __getattr__(self, method: str) -> Any:
        async def remote(*args: Any) -> str:
            self.got.append((method, args))
            await asyncio.sleep(self.takes_s)
            if self.raises is not None:
                raise self.raises
            return "heard"

        return type("Method", (), {"remote": staticmethod(remote)})

    def calls(self, method: str) -> list[tuple[Any, ...]]:
        return [args for name, args in self.got if name == method]


class FakeActors:
    """The named actors of a cluster, and what looking one up costs."""

    def __init__(self, *names: str) -> None:
        self.by_name = {name: FakeActor() for name in names}
        self.lookups: list[str] = []
        self.gcs_answers = threading.Event()
        self.gcs_answers.set()

    def look_up(self, name: str) -> FakeActor:
        self.lookups.append(name)
        self.gcs_answers.wait(5.0)
        if name not in self.by_name:
            raise ValueError(f"no actor {name}")
        return self.by_name[name]


FORECASTER, SHORT, LONG = "load_forecaster", "pool_manager:short-medium", "pool_manager:long"


def reports_of(parts: RouterParts, actors: FakeActors, deadline_s: float = 0.05, kept: int = 100) -> RouterReports:
    link = ControlActors(actors.look_up, deadline_s)
    return RouterReports(parts.host, parts.desk.directory, link, parts.desk.dispatcher.ledger, time.monotonic, kept)


def arrive(parts: RouterParts, *keys: str) -> None:
    for key in keys:
        parts.host.admit(time.monotonic(), RoutedRequest(key, 10, 20))


def ages(actor: FakeActor) -> list[int]:
    return [len(aged) for (aged,) in actor.calls("observe")]


def test_arrivals_and_routable_replicas_are_told_and_handles_kept() -> None:
    actors, parts = FakeActors(FORECASTER, SHORT, LONG), router_of(ScriptedReplicas())
    running_replicas.update(APP, frozenset({ReplicaId("r0")}))
    arrive(parts, "a", "b")

    async def run() -> None:
        reports = reports_of(parts, actors)
        await reports.report()
        await reports.report()

    asyncio.run(run())
    [(aged,)] = actors.by_name[FORECASTER].calls("observe")
    assert [(tokens, expected) for _, tokens, expected in aged] == [(10, 7.0), (10, 7.0)]
    assert all(0 <= age_s < 1 for age_s, _, _ in aged)
    assert actors.by_name[SHORT].calls("set_routable") == [(frozenset({"r0"}),)] * 2
    assert actors.by_name[LONG].calls("set_routable") == [(frozenset(),)] * 2
    assert sorted(actors.lookups) == sorted([FORECASTER, SHORT, LONG])
    assert ("forget", ("r0",)) in parts.policy.calls


def test_arrivals_wait_for_a_forecaster_that_is_away_and_never_pile_up() -> None:
    actors, parts = FakeActors(SHORT, LONG), router_of(ScriptedReplicas())

    async def run() -> None:
        reports = reports_of(parts, actors, kept=5)
        for key in "abcdefgh":
            arrive(parts, key)
            await reports.report()
        actors.by_name[FORECASTER] = FakeActor()
        await reports.report()
        await reports.report()

    asyncio.run(run())
    assert ages(actors.by_name[FORECASTER]) == [5]
    assert len(actors.by_name[SHORT].got) == 10


def test_a_restarting_forecaster_gets_the_arrivals_and_a_silent_one_not_twice() -> None:
    actors, parts = FakeActors(FORECASTER, SHORT, LONG), router_of(ScriptedReplicas())
    forecaster = actors.by_name[FORECASTER]

    async def run() -> None:
        reports = reports_of(parts, actors)
        arrive(parts, "a")
        forecaster.raises = ray.exceptions.RayActorError()
        await reports.report()
        forecaster.raises = None
        await reports.report()
        forecaster.takes_s = 1.0
        arrive(parts, "b")
        await reports.report()
        forecaster.takes_s = 0.0
        arrive(parts, "c", "d")
        await reports.report()

    asyncio.run(run())
    assert ages(forecaster) == [1, 1, 1, 2]


def test_an_unexpected_error_costs_one_report_and_not_the_reporting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    actors, parts = FakeActors(FORECASTER, SHORT, LONG), router_of(ScriptedReplicas())
    monkeypatch.setattr(reporting, "REPORT_S", 0.005)
    actors.by_name[SHORT].raises = RuntimeError("nobody thought of this")

    async def run() -> None:
        running = asyncio.create_task(reports_of(parts, actors).run())
        await asyncio.sleep(0.03)
        assert not running.done()
        actors.by_name[SHORT].raises = None
        before = len(actors.by_name[SHORT].got)
        await asyncio.sleep(0.03)
        assert len(actors.by_name[SHORT].got) > before
        running.cancel()

    asyncio.run(run())
    assert "nobody thought of this" in caplog.text


def test_a_slow_gcs_stalls_no_stream_and_holds_one_thread_for_each_name() -> None:
    actors = FakeActors(SHORT)
    actors.gcs_answers.clear()

    async def run() -> None:
        link = ControlActors(actors.look_up, deadline_s=0.03)
        longest_s, last_s = 0.0, time.monotonic()

        async def stream() -> None:
            nonlocal longest_s, last_s
            while True:
                await asyncio.sleep(0.001)
                now_s = time.monotonic()
                longest_s, last_s = max(longest_s, now_s - last_s), now_s

        streaming = asyncio.create_task(stream())
        for _ in range(4):
            with pytest.raises(CallFailedError) as told:
                await link.call(SHORT, "set_routable", frozenset())
            assert not told.value.delivered
        assert actors.lookups == [SHORT]
        actors.gcs_answers.set()
        assert await link.call(SHORT, "set_routable", frozenset()) == "heard"
        streaming.cancel()
        assert longest_s < 0.5

    asyncio.run(run())
    assert actors.lookups == [SHORT]


def test_an_actor_that_died_is_looked_up_again() -> None:
    actors = FakeActors(SHORT)
    old = actors.by_name[SHORT]
    old.raises = ray.exceptions.RayActorError()

    async def run() -> None:
        link = ControlActors(actors.look_up, deadline_s=0.5)
        with pytest.raises(CallFailedError, match=r"pool_manager:short-medium does not answer report"):
            await link.call(SHORT, "report", 1)
        actors.by_name[SHORT] = FakeActor()
        assert await link.call(SHORT, "report", 2) == "heard"

    asyncio.run(run())
    assert actors.by_name[SHORT].calls("report") == [(2,)]


def test_what_became_of_requests_is_told_once_and_kept_while_the_forecaster_is_away() -> None:
    site = Site(Settings(), PROFILE, 32, 0.0, Load(), hand_over=HandOver(327_680.0, 50e9))
    host, parts = RouterHost(make_policy("phases-apart", site)), router_of(ScriptedReplicas())
    actors = FakeActors(SHORT, LONG)
    reports = RouterReports(
        host, parts.desk.directory, ControlActors(actors.look_up, 0.05), UsageLedger(), time.monotonic
    )
    replica = ReplicaId("prefill-short-tp4-1")

    async def run() -> None:
        host.first_token("a", replica, 10, ttft_s=9.0)
        host.ended("a", replica, 10, 5)
        await reports.report()
        actors.by_name[FORECASTER] = FakeActor()
        host.first_token("b", replica, 10, ttft_s=0.01)
        await reports.report()
        await reports.report()

    asyncio.run(run())
    assert actors.by_name[FORECASTER].calls("answered") == [(Answers(2, 1),)]


def test_usage_is_told_whole_and_again_to_a_manager_that_was_away() -> None:
    parts = router_of(ScriptedReplicas())
    actors = FakeActors(FORECASTER, SHORT, LONG, "cluster_manager")
    reports, manager = reports_of(parts, actors), actors.by_name["cluster_manager"]
    ledger = parts.desk.dispatcher.ledger

    async def run() -> None:
        await reports.report()
        assert manager.calls("used") == []
        ledger.add(Used("team-a", 10, 5, 40.0))
        manager.raises = ray.exceptions.RayActorError()
        await reports.report()
        manager.raises = None
        ledger.add(Used("team-a", 10, 5, None))
        await reports.report()
        await reports.report()

    asyncio.run(run())
    told = manager.calls("used")
    assert told[-1][1] == {"team-a": TenantUsage(2, 20, 10, 40.0, 1)}
    assert len({router for router, _ in told}) == 1
    assert len(told) == 2, "what the manager has is not told again"
