"""Dispatching without Ray: retries, the policy's account, and counts that hold every request once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
from router_fakes import APP, RouterParts, ScriptedReplicas, answers, does, router_of, site_policy

from control_plane.domain import ReplicaId
from serve_apps import running_replicas
from serve_apps.api_errors import AdmittedError
from serve_apps.dispatch import Account, Answer, ReplicaLostError
from serve_apps.engines.protocol import (
    Chunk,
    EngineError,
    EngineStoppedError,
    GenerateRequest,
    RequestRefusedError,
)
from serve_apps.replica_calls import first_or_lost
from serve_apps.replica_directory import AppSpeed, ReplicaDirectory, speeds

LOST = ReplicaLostError("the actor died")
REQUEST = GenerateRequest("q", "one two", 2, 10)


def whole(parts: RouterParts) -> Answer:
    return asyncio.run(parts.desk.dispatcher.whole(REQUEST))


def streamed(parts: RouterParts) -> list[Chunk]:
    async def run() -> list[Chunk]:
        return [chunk async for chunk in parts.desk.dispatcher.stream(REQUEST)]

    return asyncio.run(run())


@pytest.mark.parametrize("lost", [LOST, EngineStoppedError("the engine has stopped")])
def test_a_replica_lost_before_its_first_token_costs_a_retry_and_no_failure(lost: Exception) -> None:
    parts = router_of(ScriptedReplicas(r0=does(lost), r1=answers("a", "b")))
    assert [chunk.text for chunk in streamed(parts)] == ["a", "b"]
    assert parts.counts.by_name() | {"spilled": 0} == {
        "accepted": 1,
        "completed": 1,
        "failed": 0,
        "cancelled": 0,
        "refused": 0,
        "unavailable": 0,
        "spilled": 0,
        "retried": 1,
        "slo_met": 1,
        "slo_missed": 0,
    }
    assert parts.meter.retries == 1
    assert parts.meter.met == [("short-medium", True)]
    [(pool, outcome, ttft_s)] = parts.meter.ended
    assert (pool, outcome) == ("short-medium", "completed")
    assert ttft_s is not None
    assert parts.policy.calls == [
        ("route", "q", "r0"),
        ("dropped", "q", "r0"),
        ("route", "q", "r1"),
        ("first_token", "q", "r1"),
        ("ended", "q", "r1", 2, 2),
    ]


@pytest.mark.parametrize(
    ("steps", "limits", "met"),
    [
        ((0.02, Chunk("a", 1, "stop")), {"ttft_limit_s": 0.01}, [False]),
        ((Chunk("a", 1), 0.02, Chunk("b", 1, "stop")), {"tbt_limit_s": 0.01}, [False]),
        ((Chunk("a", 1), Chunk("b", 1, "stop")), {"ttft_limit_s": 60.0, "tbt_limit_s": 60.0}, [True]),
        ((Chunk("a", 1), LOST), {}, [False]),
        ((RequestRefusedError("too long"),), {}, []),
    ],
    ids=["late first token", "slow tokens", "in time", "broken off", "refused: the client's fault"],
)
def test_every_request_meets_its_limits_or_misses_them_once(
    steps: tuple[Chunk | Exception | float, ...], limits: dict[str, float], met: list[bool]
) -> None:
    parts = router_of(ScriptedReplicas(r0=does(*steps)))

    async def run() -> None:
        with suppress(AdmittedError):
            async for _ in parts.desk.dispatcher.stream(replace(REQUEST, **limits)):
                pass

    asyncio.run(run())
    assert parts.meter.met == [("short-medium", each) for each in met]
    assert parts.counts.slo_missed == met.count(False)


def test_a_whole_answer_starts_anew_when_its_replica_dies_in_the_middle() -> None:
    """Nothing was delivered yet, so the client need not know."""
    parts = router_of(ScriptedReplicas(r0=does(Chunk("half", 1), LOST), r1=answers("a", "b")))
    assert whole(parts) == Answer("ab", "stop", Account(7.0, 2))
    assert parts.policy.names() == ["route", "first_token", "dropped", "route", "first_token", "ended"]
    assert parts.counts.ended["completed"] == 1
    assert parts.counts.retried == 1


def test_a_begun_stream_is_not_started_anew() -> None:
    parts = router_of(ScriptedReplicas(r0=does(Chunk("half", 1), LOST), r1=answers("a")))
    with pytest.raises(AdmittedError, match="in the middle of the answer"):
        streamed(parts)
    assert parts.policy.names() == ["route", "first_token", "dropped"]
    assert parts.counts.ended["failed"] == 1
    assert parts.counts.ended["unavailable"] == 0


def test_a_stream_that_stops_without_a_reason_is_a_lost_replica() -> None:
    parts = router_of(ScriptedReplicas(r0=does(Chunk("half", 1)), r1=answers("a")))
    assert whole(parts).text == "a"


def test_a_lost_replica_that_serve_still_lists_is_not_chosen_again_while_there_are_others() -> None:
    """A dead replica has an empty account: a policy would choose it first, again and again."""
    parts = router_of(ScriptedReplicas(r0=does(LOST), r1=does(LOST), r2=answers("a")))
    parts.policy.always_first = True
    assert whole(parts).text == "a"
    assert [name for _, name, _ in parts.replicas.sent] == ["r0", "r1", "r2"]
    alone = router_of(ScriptedReplicas(r0=does(LOST)))
    with pytest.raises(AdmittedError):
        whole(alone)
    assert [name for _, name, _ in alone.replicas.sent] == ["r0", "r0", "r0"]


def test_an_engines_fault_is_a_typed_500_and_no_retry() -> None:
    parts = router_of(ScriptedReplicas(r0=does(EngineError("CUDA error")), r1=answers("a")))
    with pytest.raises(AdmittedError, match="CUDA error") as told:
        whole(parts)
    assert told.value.status == 500
    assert len(parts.replicas.sent) == 1
    assert parts.counts.ended["failed"] == 1


def test_replicas_that_serve_updates_in_the_meantime_do_no_harm() -> None:
    """The application of a chosen replica is known from the choice; that it left since is the call's business."""

    class Leaving(ScriptedReplicas):
        async def stream(
            self, app: str, replica_id: ReplicaId, request: GenerateRequest
        ) -> AsyncGenerator[Chunk, None]:
            running_replicas.update(APP, frozenset({ReplicaId("r1")}))
            async for chunk in super().stream(app, replica_id, request):
                yield chunk

    parts = router_of(Leaving(r0=does(LOST), r1=answers("a")))
    assert whole(parts).text == "a"
    assert [(app, name) for app, name, _ in parts.replicas.sent] == [(APP, "r0"), (APP, "r1")]


def test_a_client_that_goes_away_cancels_the_request_at_once() -> None:
    parts = router_of(ScriptedReplicas(r0=does(Chunk("a", 1), Chunk("b", 1), 60.0)))

    async def run() -> None:
        async with aclosing(parts.desk.dispatcher.stream(REQUEST)) as chunks:
            await anext(chunks)
        assert parts.replicas.closed == ["r0"]

    asyncio.run(run())
    assert parts.counts.ended["cancelled"] == 1
    assert parts.policy.names() == ["route", "first_token", "dropped"]


def test_a_cancelled_handler_cancels_the_request_at_once() -> None:
    parts = router_of(ScriptedReplicas(r0=does(60.0)))

    async def run() -> None:
        asked = asyncio.create_task(parts.desk.dispatcher.whole(REQUEST))
        await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert parts.replicas.closed == ["r0"]

    asyncio.run(run())
    assert parts.counts.ended["cancelled"] == 1
    assert parts.policy.names() == ["route", "dropped"]


def test_a_client_that_leaves_after_the_last_chunk_has_its_answer() -> None:
    parts = router_of(ScriptedReplicas(r0=answers("a")))

    async def run() -> None:
        async with aclosing(parts.desk.dispatcher.stream(REQUEST)) as chunks:
            await anext(chunks)

    asyncio.run(run())
    assert parts.counts.ended["completed"] == 1
    assert parts.policy.names() == ["route", "first_token", "ended"]


def test_a_request_waits_for_a_first_replica() -> None:
    parts = router_of(ScriptedReplicas(), no_replica_wait_s=5.0)
    parts.replicas.scripts["late"] = answers("a")

    async def run() -> Answer:
        asked = asyncio.create_task(parts.desk.dispatcher.whole(REQUEST))
        await asyncio.sleep(0.02)
        running_replicas.update(APP, frozenset({ReplicaId("late")}))
        return await asked

    assert asyncio.run(run()).text == "a"
    [(_, _, request)] = parts.replicas.sent
    assert request.waited_s > 0.02


def test_candidates_are_the_same_object_until_a_replica_comes_or_goes() -> None:
    directory = ReplicaDirectory({APP: AppSpeed(site_policy().pools[0].pool, 0.1, 0.2)})
    running_replicas.update(APP, frozenset({ReplicaId("b"), ReplicaId("a")}))
    first = directory.candidates()
    assert [candidate.replica_id for candidate in first] == ["a", "b"]
    running_replicas.update(APP, frozenset({ReplicaId("a"), ReplicaId("b")}))
    running_replicas.update("another-app", frozenset())
    assert directory.candidates() == first
    again = directory.candidates()
    assert directory.candidates() is again
    running_replicas.update(APP, frozenset({ReplicaId("b")}))
    assert [candidate.replica_id for candidate in directory.candidates()] == ["b"]
    assert directory.app_of(ReplicaId("b")) == APP
    assert directory.by_pool() == {"short-medium": frozenset({"b"})}


def test_every_pool_and_tensor_parallelism_has_its_speed() -> None:
    from router_fakes import PROFILE

    by_app = speeds(site_policy(), PROFILE)
    assert set(by_app) == {f"{pool}-tp{tp}" for pool in ("short-medium", "long") for tp in (2, 4, 8)}
    assert by_app["long-tp8"].token_s < by_app["long-tp2"].token_s


async def _never() -> Chunk:
    await asyncio.sleep(60)
    return Chunk("", 0)


def test_a_replica_that_was_scaled_away_owes_a_first_token_only_for_a_moment() -> None:
    async def run() -> None:
        running_replicas.update(APP, frozenset({ReplicaId("r0")}))
        waiting = asyncio.create_task(first_or_lost(_never(), APP, ReplicaId("r0"), leaving_s=0.05, look_s=0.01))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        running_replicas.update(APP, frozenset())
        with pytest.raises(ReplicaLostError, match="scaled away"):
            await asyncio.wait_for(waiting, 2.0)

    asyncio.run(run())
