"""A replica's queue as it is seen from outside its engine; needs no vLLM."""

import pytest

from serve_apps.engines.protocol import GenerateRequest
from serve_apps.ray_llm import scheduler_view
from serve_apps.ray_llm.open_requests import OpenRequests, Pace
from serve_apps.ray_llm.scheduler_view import SchedulerView

PACE = Pace(token_s=0.001, base_s=0.1, tbt_s=0.05)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def request(key: str, tokens: int = 400, limit_s: float = 2.0) -> GenerateRequest:
    return GenerateRequest(key, "", tokens, 10, ttft_limit_s=limit_s)


def test_a_stream_waits_until_its_first_token() -> None:
    clock = Clock()
    seen = OpenRequests(1, 10_000, PACE, clock)
    seen.began(request("a"), streams=True)
    clock.now_s += 1.0
    seen.began(request("b", limit_s=0.4), streams=True)
    stats = seen.stats()
    assert (stats.waiting, stats.running, stats.oldest_wait_s, stats.queued_tokens) == (2, 0, 1.0, 800)
    assert stats.tightest_slack_s == pytest.approx(0.4)
    assert [prompt.arrival_s for prompt in seen.queue(1980).queued] == [101.0, 100.0]
    seen.progressed("a", 3)
    view = seen.queue(1980)
    assert (len(view.queued), view.decoding, view.context_tokens) == (1, 1, 403)
    seen.ended("a")
    seen.ended("b")
    assert (seen.stats().waiting, seen.stats().running) == (0, 0)


def test_a_request_that_does_not_stream_decodes_after_its_prompts_time_and_no_longer_than_it_may() -> None:
    clock = Clock()
    seen = OpenRequests(1, 10_000, PACE, clock)
    seen.began(request("a"), streams=False)
    clock.now_s += 0.4
    assert seen.silent_progress() == {}
    clock.now_s += 0.2
    assert seen.silent_progress() == {"a": pytest.approx(2.0)}
    assert seen.stats().running == 1
    assert seen.silent_progress() == {}
    clock.now_s += 60.0
    assert seen.silent_progress() == {"a": pytest.approx(8.0)}


def test_the_schedulers_own_word_counts_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_view, "_last", {})
    clock = Clock()
    seen = OpenRequests(1, 10_000, PACE, clock)
    seen.began(request("a"), streams=True)
    scheduler_view.tell(0, SchedulerView(clock.now_s, 4, 5, 0.25))
    scheduler_view.tell(1, SchedulerView(clock.now_s, 1, 1, 0.5))
    stats = seen.stats()
    assert (stats.waiting, stats.running, stats.kv_used_ratio) == (5, 6, 0.5)
    clock.now_s += scheduler_view.FRESH_S + 1
    assert seen.stats().waiting == 1
