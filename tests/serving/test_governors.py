"""Governors choose the lowest clock that keeps every limit, and never a lower one for more work."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import QueuedPrompt, QueueView, Role
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.clock_costs import clock_costs, efficient_mhz
from control_plane.serving.governors import DecodeGovernor, LimitShares, PrefillGovernor

PROFILE = RooflineProfile()
COSTS = clock_costs(PROFILE, 4)
SHARES = LimitShares(0.5, 0.7)
SETTLE_S = 0.05
prefill = PrefillGovernor(COSTS, 990, SHARES, SETTLE_S)
decode = DecodeGovernor(COSTS, 990, 0.08, full_at=205, most=240)

prompts = st.lists(st.tuples(st.floats(-3.0, 0.0), st.integers(1, 8000)), max_size=12)


def queue(role: Role, queued: list[tuple[float, int]], decoding: int = 0, context: int = 0) -> QueueView:
    waiting = [QueuedPrompt(at_s, tokens, tokens, 2.0 if tokens >= 1024 else 0.3) for at_s, tokens in queued]
    return QueueView(4, role, 1980, tuple(waiting), decoding, context, 0, 500_000)


def in_time(view: QueueView, freq_mhz: int) -> bool:
    cost = next(cost for cost in COSTS if cost.freq_mhz == freq_mhz)
    ahead = 0
    for prompt in view.queued:
        ahead += prompt.left_tokens
        takes_s = cost.prefill_s(ahead) + cost.own_attention_s(prompt.input_tokens) + SETTLE_S / 2
        if prompt.arrival_s + SHARES.of(prompt.input_tokens) * prompt.ttft_limit_s < takes_s:
            return False
    return True


@given(prompts)
def test_the_lowest_clock_at_which_every_prompt_is_in_time(queued: list[tuple[float, int]]) -> None:
    view = queue(Role.PREFILL, queued)
    chosen = prefill.look(view, 0.0)
    clocks = [cost.freq_mhz for cost in COSTS if cost.freq_mhz >= 990]
    assert chosen == next((mhz for mhz in clocks if in_time(view, mhz)), clocks[-1])


@given(prompts, st.integers(1, 4000))
def test_one_more_prompt_never_lowers_the_clock(queued: list[tuple[float, int]], tokens: int) -> None:
    more = [*queued, (0.0, tokens)]
    assert prefill.look(queue(Role.PREFILL, more), 0.0) >= prefill.look(queue(Role.PREFILL, queued), 0.0)


def test_nothing_queued_is_the_lowest_clock_that_it_may_take() -> None:
    assert prefill.look(queue(Role.PREFILL, []), 0.0) == 990
    assert decode.look(queue(Role.DECODE, []), 0.0) == 990


@given(st.integers(0, 250), st.integers(0, 600_000), st.integers(0, 10))
def test_more_to_decode_never_lowers_the_clock(decoding: int, context: int, more: int) -> None:
    view = queue(Role.DECODE, [], decoding, context)
    assert decode.look(replace(view, decoding=decoding + more), 0.0) >= decode.look(view, 0.0)


def test_a_batch_that_is_about_to_be_full_is_worked_off_at_full_clock() -> None:
    assert decode.look(queue(Role.DECODE, [], 205, 1000), 0.0) == 990
    assert decode.look(queue(Role.DECODE, [], 240, 1000), 0.0) == 1980


def test_long_contexts_raise_the_clock_of_a_decode_replica() -> None:
    assert decode.look(queue(Role.DECODE, [], 200, 2_000_000), 0.0) > 990


def test_the_efficient_clock_is_neither_the_lowest_nor_the_highest() -> None:
    assert PROFILE.freqs_mhz[0] < efficient_mhz(PROFILE, 4, 2048) < PROFILE.freqs_mhz[-1]
