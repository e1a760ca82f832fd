"""The policy's choice among the replicas of one ray.serve.llm deployment; needs no vLLM."""

from types import SimpleNamespace

import pytest

from serve_apps.ray_llm.managed_config import ConfigRefusedError
from serve_apps.ray_llm.policy_desk import PolicyDesk

SECTION = {
    "profile": "llama8b-h200",
    "gpu": {"driver": "simulated", "count": 4},
    "pools": [{"name": "llm", "input_classes": ["S", "M", "L"]}],
}
IDS = ("a", "b")


def call(prompt: str, **headers: str) -> list[object]:
    body = SimpleNamespace(model="m", stream=False, prompt=prompt, max_tokens=10)
    return [body, SimpleNamespace(headers=headers)]


def test_a_request_goes_where_less_is_ahead_of_it_until_that_is_done() -> None:
    desk = PolicyDesk(SECTION)
    first = desk.choose("r1", call("word " * 2000), IDS)
    other = desk.choose("r2", call("short"), IDS)
    assert {first, other} == set(IDS)
    assert desk.choose("r3", call("short"), IDS) == other
    desk.completed("r1")
    assert desk.choose("r4", call("short"), IDS) == first


def test_a_request_that_is_asked_for_again_counts_once() -> None:
    desk = PolicyDesk(SECTION)
    for _ in range(5):
        desk.choose("r1", call("word " * 2000), ("a",))
    desk.completed("r1")
    assert desk.choose("r2", call("short"), IDS) == "a"


def test_headers_that_cannot_be_used_and_no_replicas_are_left_to_serve() -> None:
    desk = PolicyDesk(SECTION)
    assert desk.choose("r2", call("short", **{"X-SLO-TTFT-MS": "soon"}), IDS) is None
    assert desk.choose("r3", call("short"), ()) is None


def test_settings_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigRefusedError, match="profile: missing"):
        PolicyDesk(None)
