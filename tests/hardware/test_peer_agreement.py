"""``ReplicaModel`` beside queueing theory and, where it is installed, NVIDIA Dynamo's offline replay."""

from types import ModuleType

import pytest


def test_one_prompt_a_pass_is_lindleys_recursion(peer_agreement: ModuleType) -> None:
    case = peer_agreement.one_prompt_a_pass(0.8, 3000)
    waits_ms = [0.0]
    for before_ms, at_ms in zip(case.arrival_ms, case.arrival_ms[1:], strict=False):
        waits_ms.append(max(0.0, waits_ms[-1] + case.prefill_ms - (at_ms - before_ms)))
    expected = [wait_ms + case.prefill_ms for wait_ms in waits_ms]
    assert list(peer_agreement.stepped(case).ttft_ms) == pytest.approx(expected, abs=1e-6)


def test_one_prompt_a_pass_waits_as_an_m_d_1_queue(peer_agreement: ModuleType) -> None:
    case = peer_agreement.one_prompt_a_pass(0.5, 40_000)
    assert peer_agreement.stepped(case).mean_ttft_ms == pytest.approx(case.formula_ms, rel=0.01)


def test_a_tight_cache_preempts_in_the_case_that_is_named_so(peer_agreement: ModuleType) -> None:
    *roomy, tight = peer_agreement.cases(3000)
    assert [peer_agreement.stepped(case).preemptions for case in roomy] == [0] * len(roomy)
    assert peer_agreement.stepped(tight).preemptions > 0


@pytest.mark.soak
@pytest.mark.parametrize("number", range(5))
def test_mean_times_to_first_token_are_the_peers(peer_agreement: ModuleType, peer_python: str, number: int) -> None:
    case = peer_agreement.cases(20_000)[number]
    theirs = peer_agreement.replayed(case, peer_python)
    assert peer_agreement.stepped(case).mean_ttft_ms == pytest.approx(theirs.mean_ttft_ms, rel=case.may_differ)
