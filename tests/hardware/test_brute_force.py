"""The engines against the brute-force replica: same token times, same preemptions."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from brute_force_replica import Arrival, Played, play
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.baselines.single_pool import SinglePool
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.replica_model import ReplicaLimits, ReplicaModel
from control_plane.hardware.shape_tables import ShapeTables
from control_plane.simulation.serving_cluster import SimulatedCluster
from control_plane.simulation.trace import Trace

PROFILE = RooflineProfile()
TOP = PROFILE.max_freq_mhz
TP = 8


def stepped(arrivals: Sequence[Arrival], limits: ReplicaLimits, freq_mhz: int = TOP) -> Played:
    """``ReplicaModel`` driven as the simulator drives it."""
    played = Played(token_ps={number: [] for number in range(len(arrivals))})
    replica = ReplicaModel(PROFILE.times(TP), limits)
    here: set[int] = set()
    to_come = list(range(len(arrivals)))

    def submit(number: int) -> None:
        arrival = arrivals[number]
        replica.submit(number, arrival.input_tokens, arrival.output_tokens, arrival.at_ps, arrival.kv_arrived)
        here.add(number)

    now_ps = 0
    while to_come or here:
        if not here:
            now_ps = max(now_ps, arrivals[to_come[0]].at_ps)
            submit(to_come.pop(0))
        already_running = replica.running
        iteration = replica.begin(freq_mhz)
        assert iteration is not None
        admitted = replica.running - already_running
        assert replica.kv_used_tokens <= limits.kv_tokens
        before = {number: replica.generated(number) for number in here}
        for number, _ in replica.shares():
            assert isinstance(number, int)
            if before[number] == 0:
                played.started_ps.setdefault(number, now_ps)
        now_ps += iteration.duration_ps
        while to_come and arrivals[to_come[0]].at_ps < now_ps:
            submit(to_come.pop(0))
        for number in sorted(here):
            cancelled_ps = arrivals[number].cancelled_ps
            if cancelled_ps is not None and cancelled_ps < now_ps:
                assert replica.cancel(number)
                here.remove(number)
        progress = replica.complete()
        assert not (admitted and progress.preempted), "nobody is thrown out in an iteration that admits somebody"
        for number in before:
            finished = number in progress.finished
            if finished or (number in here and replica.generated(number) > before[number]):
                played.token_ps[number].append(now_ps)
                if finished:
                    here.remove(number)
        for key in progress.preempted:
            assert isinstance(key, int)
            played.preempted.append((now_ps, key))
    assert (replica.kv_used_tokens, replica.busy) == (0, False)
    return played


def fuzzed(seed: int) -> tuple[list[Arrival], ReplicaLimits]:
    """Arrivals at random moments, and a cache that is often tight; none cancelled, none prefilled elsewhere."""
    random = Random(seed)
    most_input, most_output = random.choice([(20, 6), (60, 60), (300, 60), (3000, 120)])
    grid_ps = random.choice([1, 10**9, 10**11])
    within_ps = random.choice([1, 10**11, 10**12, 5 * 10**12])
    moments = sorted(random.randint(0, within_ps) // grid_ps * grid_ps for _ in range(random.randint(1, 40)))
    arrivals = [Arrival(at_ps, random.randint(1, most_input), random.randint(1, most_output)) for at_ps in moments]
    room = int((most_input + most_output) * random.choice([1, 1.1, 1.3, 2.5, 50]))
    return arrivals, ReplicaLimits(room, random.choice([1, 2, 5, 256]), random.choice([16, 128, 2048]))


def assert_compiled_agrees(seed: int) -> int:
    """One fuzzed case through ``ReplicaModel`` and the compiled engine; returns how many were preempted."""
    arrivals, limits = fuzzed(seed)
    times = PROFILE.times(TP)
    truth = play(arrivals, times, limits, TOP)
    assert stepped(arrivals, limits) == truth, f"seed {seed}"
    trace = Trace(
        np.array([arrival.at_ps for arrival in arrivals], np.int64),
        np.array([arrival.input_tokens for arrival in arrivals], np.int32),
        np.array([arrival.output_tokens for arrival in arrivals], np.int32),
    )
    tables = {TP: ShapeTables(times, limits, PROFILE.gpu, TP)}
    outcome = SimulatedCluster(PROFILE, None, SinglePool(1), engine="compiled", tables=tables).run(trace)
    tokens_ps = list(truth.token_ps.values())
    assert list(outcome.columns.started_ps) == [truth.started_ps[n] for n in range(len(arrivals))], f"seed {seed}"
    assert list(outcome.columns.first_token_ps) == [tokens[0] for tokens in tokens_ps], f"seed {seed}"
    assert list(outcome.columns.finished_ps) == [tokens[-1] for tokens in tokens_ps], f"seed {seed}"
    assert outcome.gaps.bins.sum() == sum(len(tokens) - 1 for tokens in tokens_ps), f"seed {seed}"
    return len(truth.preempted)


def test_fuzzed_cases_agree_with_the_brute_force_replica() -> None:
    assert sum(assert_compiled_agrees(seed) for seed in range(40)) > 50, "the cache is tight in some of them"


@pytest.mark.soak
@pytest.mark.parametrize("block", range(10))
def test_500_fuzzed_cases_agree_with_the_brute_force_replica(block: int) -> None:
    assert sum(assert_compiled_agrees(seed) for seed in range(block * 50, block * 50 + 50)) > 20


@st.composite
def any_arrival(draw: st.DrawFn) -> Arrival:
    at_ps = draw(st.integers(0, 20)) * 10**10
    kv_arrived = draw(st.booleans())
    input_tokens, output_tokens = draw(st.integers(1, 60)), draw(st.integers(2 if kv_arrived else 1, 40))
    stays_ps = draw(st.none() | st.integers(0, 40).map(lambda n: n * 10**10))
    return Arrival(at_ps, input_tokens, output_tokens, kv_arrived, None if stays_ps is None else at_ps + stays_ps)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(any_arrival(), min_size=1, max_size=12).map(lambda found: sorted(found, key=lambda a: a.at_ps)),
    st.integers(100, 250),
    st.sampled_from([1, 3, 256]),
    st.sampled_from([1, 8, 64, 2048]),
    st.sampled_from(PROFILE.gpu.freqs_mhz),
)
def test_any_arrivals_and_cancellations_agree(
    arrivals: list[Arrival], kv_tokens: int, batch_requests: int, batch_tokens: int, freq_mhz: int
) -> None:
    limits = ReplicaLimits(kv_tokens, batch_requests, batch_tokens)
    assert stepped(arrivals, limits, freq_mhz) == play(arrivals, PROFILE.times(TP), limits, freq_mhz)


def test_the_brute_force_replica_preempts_by_hand_counted_steps() -> None:
    limits = ReplicaLimits(kv_tokens=12, batch_requests=4, batch_tokens=64)
    old, new = Arrival(0, 4, 6), Arrival(0, 2, 7)
    played = play([old, new], PROFILE.times(TP), limits, TOP)
    # The first iteration prefills the old one alone, since it begins when that one comes. The second has old 5 and
    # new 2, then 6 + 3, 7 + 4; 8 + 5 entries overflow after the fourth, and the new one recomputes 2 + 3 tokens once
    # the old one has left, after its sixth token.
    assert len(played.preempted) == 1
    (at_ps, number) = played.preempted[0]
    assert number == 1
    assert at_ps == played.token_ps[0][3] == played.token_ps[1][2]
    assert [len(tokens) for tokens in played.token_ps.values()] == [6, 7]
    assert played.token_ps[1][3] > played.token_ps[0][5]
