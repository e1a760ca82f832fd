import pytest

from control_plane.domain import PoolName, ReplicaId
from control_plane.serving.routing import Candidate, RouterLedger, route
from control_plane.settings import Settings

SETTINGS = Settings()
SLO = SETTINGS.slo.slo()
SHORT, LONG = PoolName("short-medium"), PoolName("long")


def candidate(name: str, pool: PoolName = SHORT, token_s: float = 100e-6) -> Candidate:
    return Candidate(ReplicaId(name), pool, token_s, 0.015)


def send(ledger: RouterLedger, candidates: dict[PoolName, list[Candidate]], input_tokens: int, key: str) -> str:
    chosen = route(SETTINGS, SLO, ledger, candidates, input_tokens)
    assert chosen is not None
    ledger.assigned(key, chosen.replica_id, input_tokens)
    return chosen.replica_id


def test_requests_spread_over_equal_replicas() -> None:
    ledger = RouterLedger()
    pools = {SHORT: [candidate("a"), candidate("b")]}
    assert [send(ledger, pools, 200, str(number)) for number in range(4)] == ["a", "b", "a", "b"]


def test_a_faster_replica_gets_more() -> None:
    ledger = RouterLedger()
    pools = {SHORT: [candidate("slow", token_s=200e-6), candidate("fast", token_s=50e-6)]}
    sent = [send(ledger, pools, 500, str(number)) for number in range(5)]
    assert sent.count("fast") == 4


def test_a_request_stays_in_its_pool_while_its_ttft_limit_holds() -> None:
    chosen = route(SETTINGS, SLO, RouterLedger(), {SHORT: [candidate("a")], LONG: [candidate("b", LONG, 1e-6)]}, 200)
    assert chosen is not None
    assert (chosen.pool, chosen.spilled) == (SHORT, False)


def test_it_spills_when_its_own_pool_would_break_the_limit() -> None:
    ledger = RouterLedger()
    ledger.assigned("big", ReplicaId("a"), 8000)
    chosen = route(SETTINGS, SLO, ledger, {SHORT: [candidate("a")], LONG: [candidate("b", LONG)]}, 200)
    assert chosen is not None
    assert (chosen.pool, chosen.replica_id, chosen.spilled) == (LONG, "b", True)


def test_a_worse_pool_is_no_refuge() -> None:
    ledger = RouterLedger()
    ledger.assigned("big", ReplicaId("a"), 4000)
    ledger.assigned("bigger", ReplicaId("b"), 9000)
    chosen = route(SETTINGS, SLO, ledger, {SHORT: [candidate("a")], LONG: [candidate("b", LONG)]}, 200)
    assert chosen is not None
    assert (chosen.replica_id, chosen.spilled) == ("a", False)


def test_any_replica_serves_when_the_own_pool_has_none() -> None:
    chosen = route(SETTINGS, SLO, RouterLedger(), {SHORT: [], LONG: [candidate("b", LONG)]}, 200)
    assert chosen is not None
    assert chosen.replica_id == "b"


def test_nowhere_to_go_is_none() -> None:
    assert route(SETTINGS, SLO, RouterLedger(), {SHORT: []}, 200) is None


def test_the_ledger_is_empty_again_when_all_has_ended() -> None:
    ledger, replica = RouterLedger(), ReplicaId("a")
    ledger.assigned("x", replica, 300)
    ledger.assigned("y", replica, 500)
    ledger.first_token("x", replica)
    assert ledger.expected_ttft_s(candidate("a"), 100) > RouterLedger().expected_ttft_s(candidate("a"), 100)
    ledger.ended("x", replica)
    ledger.ended("y", replica)
    assert ledger.expected_ttft_s(candidate("a"), 100) == RouterLedger().expected_ttft_s(candidate("a"), 100)


def test_a_gone_replica_is_forgotten_only_when_it_owes_nothing() -> None:
    ledger = RouterLedger()
    ledger.assigned("x", ReplicaId("a"), 300)
    ledger.forget([])
    ledger.ended("x", ReplicaId("a"))
    ledger.forget([])
    with pytest.raises(KeyError):
        ledger.ended("x", ReplicaId("a"))
