import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits, ReplicaModel

PROFILE = RooflineProfile()
TOP = PROFILE.max_freq_mhz


def model(kv_tokens: int = 10_000, batch_tokens: int = 512) -> ReplicaModel:
    return ReplicaModel(PROFILE.times(4), ReplicaLimits(kv_tokens, 256, batch_tokens))


def run(replica: ReplicaModel, freq_mhz: int = TOP) -> tuple[dict[object, int], dict[object, int], int]:
    """Iterate until empty: first-token and finish times by key, preemptions."""
    now_ps, first, finished, preempted = 0, {}, {}, 0
    while (iteration := replica.begin(freq_mhz)) is not None:
        now_ps += iteration.duration_ps
        progress = replica.complete()
        first |= dict.fromkeys(progress.first_token, now_ps)
        finished |= dict.fromkeys(progress.finished, now_ps)
        preempted += len(progress.preempted)
    return first, finished, preempted


def test_one_request_takes_its_prefill_and_an_iteration_a_token() -> None:
    replica = model()
    replica.submit("a", 100, 4, 0)
    durations = []
    while (iteration := replica.begin(TOP)) is not None:
        durations.append((iteration.tokens, iteration.prefill_tokens))
        replica.complete()
    assert durations == [(100, 100), (1, 0), (1, 0), (1, 0)]


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_decoders() -> None:
    replica = model(batch_tokens=512)
    replica.submit("short", 10, 50, 0)
    replica.begin(TOP)
    replica.complete()
    replica.submit("long", 1000, 2, 0)
    shapes = []
    for _ in range(3):
        iteration = replica.begin(TOP)
        assert iteration is not None
        shapes.append((iteration.tokens, iteration.prefill_tokens))
        replica.complete()
    assert shapes == [(512, 511), (490, 489), (2, 0)]


def test_a_lower_clock_takes_longer() -> None:
    slow, fast = model(), model()
    for replica in (slow, fast):
        replica.submit("a", 500, 20, 0)
    assert run(slow, 990)[1]["a"] > run(fast, TOP)[1]["a"]


def test_the_newest_decoder_gives_way_when_kv_runs_out_and_still_completes() -> None:
    replica = model(kv_tokens=220)
    replica.submit("old", 90, 60, 0)
    replica.submit("new", 90, 60, 0)
    first, finished, preempted = run(replica)
    assert preempted >= 1
    assert set(first) == set(finished) == {"old", "new"}
    assert finished["old"] < finished["new"]


def test_a_newcomer_waits_while_its_first_token_would_overflow_the_cache() -> None:
    replica = model(kv_tokens=100)
    replica.submit("a", 50, 45, 0)
    for _ in range(9):
        replica.begin(TOP)
        replica.complete()
    assert replica.kv_used_tokens == 59
    replica.submit("b", 40, 10, 0)
    iteration = replica.begin(TOP)
    assert iteration is not None
    assert iteration.prefill_tokens == 0, "59 + 40 entries fit, but 60 + 41 after it would not"
    assert replica.complete().preempted == ()
    assert run(replica)[2] == 0


def test_a_newcomer_is_prefilled_where_everyones_next_token_just_fits() -> None:
    replica = model(kv_tokens=101)
    replica.submit("a", 50, 45, 0)
    for _ in range(9):
        replica.begin(TOP)
        replica.complete()
    replica.submit("b", 40, 10, 0)
    iteration = replica.begin(TOP)
    assert iteration is not None
    assert iteration.prefill_tokens == 40
    assert replica.complete().preempted == ()
    assert replica.kv_used_tokens == 101


def test_a_full_cache_is_used_to_its_last_entry() -> None:
    replica = model(kv_tokens=110)
    replica.submit("old", 40, 30, 0)
    replica.submit("new", 40, 30, 0)
    used = []
    preempted_after = 0
    while not preempted_after:
        replica.begin(TOP)
        used.append(replica.kv_used_tokens)
        preempted_after = len(used) * len(replica.complete().preempted)
    assert used == [80, *range(82, 111, 2)]
    assert preempted_after == 16


def test_a_kv_cache_that_arrives_needs_room_for_its_first_token_too() -> None:
    for kv_tokens, admitted in ((102, 1), (103, 2)):
        replica = model(kv_tokens)
        replica.submit("a", 50, 40, 0)
        for _ in range(9):
            replica.begin(TOP)
            replica.complete()
        replica.submit("b", 41, 10, 0, kv_arrived=True)
        replica.begin(TOP)
        assert replica.running == admitted
        assert replica.complete().preempted == ()


def test_a_request_as_long_as_the_cache_runs_alone_to_its_end() -> None:
    replica = model(kv_tokens=100)
    replica.submit("whole", 60, 40, 0)
    replica.submit("next", 60, 40, 0)
    first, finished, preempted = run(replica)
    assert preempted == 0
    assert first["next"] > finished["whole"]


def test_a_cancelled_request_frees_its_kv_wherever_it_is() -> None:
    replica = model(kv_tokens=300, batch_tokens=64)
    replica.submit("decoding", 20, 50, 0)
    replica.begin(TOP)
    replica.complete()
    replica.submit("prefilling", 200, 5, 0)
    replica.begin(TOP)
    replica.complete()
    replica.submit("waiting", 200, 5, 0)
    assert replica.waiting == 1
    for key in ("waiting", "prefilling", "decoding"):
        assert replica.cancel(key)
        assert not replica.cancel(key)
    assert replica.begin(TOP) is None
    assert (replica.kv_used_tokens, replica.running, replica.waiting, replica.busy) == (0, 0, 0, False)


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "told"), [(0, 5, "need >= 1"), (5, 0, "need >= 1"), (9000, 2000, "KV cache")]
)
def test_what_could_never_run_is_refused(input_tokens: int, output_tokens: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model().submit("a", input_tokens, output_tokens, 0)


def test_a_key_that_is_here_is_refused() -> None:
    replica = model()
    replica.submit("a", 5, 5, 0)
    with pytest.raises(ValueError, match="here already"):
        replica.submit("a", 5, 5, 0)


def test_generated_counts_up_to_the_end() -> None:
    replica = model()
    replica.submit("a", 10, 5, 0)
    seen = []
    while replica.begin(TOP) is not None:
        seen.append(replica.generated("a"))
        replica.complete()
    assert seen == [0, 1, 2, 3, 4]


requests = st.lists(st.tuples(st.integers(1, 120), st.integers(1, 60)), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(requests, st.integers(200, 900))
def test_everything_submitted_completes_and_all_kv_is_free(pairs: list[tuple[int, int]], kv_tokens: int) -> None:
    replica = model(kv_tokens, batch_tokens=128)
    for number, (input_tokens, output_tokens) in enumerate(pairs):
        replica.submit(number, input_tokens, output_tokens, 0)
    first, finished, _ = run(replica)
    assert set(first) == set(finished) == set(range(len(pairs)))
    assert all(first[key] <= finished[key] for key in finished)
    assert (replica.kv_used_tokens, replica.busy) == (0, False)
