"""Routing with phases apart: prompts to the shortest queue, decoding packed, an overload kept to one queue."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import InputClass, PoolName, ReplicaId, Slo
from control_plane.serving.phase_router import PhaseRouter, PhaseRules
from control_plane.serving.policy import HandOver, RoutedRequest
from control_plane.serving.routing import Candidate

SHORT, LONG, DECODE = PoolName("prefill-short"), PoolName("prefill-long"), PoolName("decode")
TOKEN_S = 1e-4


def candidates(pool: PoolName, *numbers: int) -> list[Candidate]:
    return [Candidate(ReplicaId(f"{pool}-tp4-{number}"), pool, TOKEN_S, 0.01) for number in numbers]


LONGS = candidates(LONG, 1, 2, 3)
PREFILLS = candidates(SHORT, 4) + LONGS
DECODERS = candidates(DECODE, 10, 9, 8)


def router(kv_tokens: int = 400_000, most_decoding: int = 200, link_bytes_per_s: float = 50e9) -> PhaseRouter:
    handicaps = {(LONG, InputClass.SHORT): 1_000, (LONG, InputClass.MEDIUM): 1_000, (SHORT, InputClass.LONG): 20_000}
    rules = PhaseRules(handicaps, most_decoding=most_decoding)
    return PhaseRouter(rules, HandOver(327_680, link_bytes_per_s), Slo(), {DECODE: kv_tokens})


def routed(parts: PhaseRouter, key: str, tokens: int, among: Sequence[Candidate], now_s: float = 0.0) -> str:
    chosen = parts.route(now_s, RoutedRequest(key, tokens, 4096), among)
    assert chosen is not None
    return chosen.replica_id


def test_prompts_go_to_the_shortest_queue_of_their_pool() -> None:
    parts = router()
    went = [routed(parts, f"r{n}", 2000, PREFILLS) for n in range(4)]
    assert went[:3] == [c.replica_id for c in LONGS]
    assert went[3] == went[0]
    assert routed(parts, "short", 100, PREFILLS) == PREFILLS[0].replica_id


def test_a_short_prompt_leaves_its_pool_only_where_the_other_is_far_shorter() -> None:
    parts = router()
    assert routed(parts, "a", 900, PREFILLS) == PREFILLS[0].replica_id
    assert routed(parts, "b", 900, PREFILLS) == PREFILLS[0].replica_id
    assert routed(parts, "c", 900, PREFILLS) == LONGS[0].replica_id


def test_nothing_to_route_to_is_nowhere() -> None:
    assert router().route(0.0, RoutedRequest("a", 10, 10), []) is None
    assert router().route_decode(0.0, "a", 10, []) is None


def test_those_who_will_be_late_anyway_share_one_queue() -> None:
    """Each replica works off 10,000 tokens a second and a long prompt may take 2 s: beyond 17,000 queued tokens."""
    parts = router()
    went = [routed(parts, f"r{n}", 4000, LONGS) for n in range(30)]
    in_time, late = went[:12], went[12:]
    assert sorted(in_time.count(c.replica_id) for c in LONGS) == [4, 4, 4]
    assert len(set(late)) == 1


def test_decoding_is_packed_onto_the_replica_with_the_least_number() -> None:
    parts = router(most_decoding=3)
    went = [parts.route_decode(float(n), f"r{n}", 100, DECODERS) for n in range(7)]
    assert went == [f"decode-tp4-{number}" for number in (8, 8, 8, 9, 9, 9, 10)]
    parts.ended("r0", ReplicaId("decode-tp4-8"), 100, 50)
    assert parts.route_decode(9.0, "r9", 100, DECODERS) == "decode-tp4-8"


def test_a_full_cache_sends_the_next_to_another_replica() -> None:
    parts = router(kv_tokens=2000)
    went = [parts.route_decode(float(n), f"r{n}", 500, DECODERS) for n in range(3)]
    assert went == ["decode-tp4-8", "decode-tp4-8", "decode-tp4-9"]


def test_a_busy_link_sends_the_next_to_another_replica() -> None:
    """A prompt of 1,000 tokens takes the link for 0.33 s."""
    parts = router(link_bytes_per_s=1e9)
    for key in ("a", "b"):
        routed(parts, key, 100, PREFILLS)
    assert parts.route_decode(0.0, "a", 1000, DECODERS) == "decode-tp4-8"
    assert parts.route_decode(0.0, "b", 1000, DECODERS) == "decode-tp4-9"


def test_where_no_replica_has_room_the_least_loaded_takes_it() -> None:
    parts = router(most_decoding=1)
    for n in range(3):
        parts.route_decode(float(n), f"r{n}", 100 * (3 - n), DECODERS)
    assert parts.route_decode(10.0, "more", 100, DECODERS) == "decode-tp4-10"


@given(st.lists(st.tuples(st.integers(1, 9000), st.sampled_from(["ended", "dropped", "handed", "lost"])), max_size=40))
def test_once_all_have_gone_nothing_is_accounted_for(requests: list[tuple[int, str]]) -> None:
    parts = router()
    for number, (tokens, fate) in enumerate(requests):
        key = f"r{number}"
        at = ReplicaId(routed(parts, key, tokens, PREFILLS))
        if fate in ("handed", "lost"):
            decoder = parts.route_decode(0.0, key, tokens, DECODERS)
            assert decoder is not None
            at = decoder
        if fate in ("ended", "handed"):
            parts.ended(key, at, tokens, 5)
        else:
            parts.dropped(key, at)
    parts.forget([])
    fresh = router()
    for tokens in (50, 3000):
        assert routed(parts, f"new{tokens}", tokens, PREFILLS) == routed(fresh, f"new{tokens}", tokens, PREFILLS)
        assert parts.route_decode(99.0, f"new{tokens}", tokens, DECODERS) == fresh.route_decode(
            99.0, f"new{tokens}", tokens, DECODERS
        )
