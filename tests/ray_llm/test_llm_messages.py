"""What is read of requests and answers of ray.serve.llm, and what is written into them; needs no vLLM."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from control_plane.domain import Slo
from serve_apps.ray_llm.llm_messages import read_request, token_counter, tokens_of, usage_of, with_usage
from serve_apps.sse import DONE, event


def chunk(**delta: str) -> str:
    return event({"choices": [{"index": 0, "delta": delta}]})


def body(**fields: Any) -> Any:
    return SimpleNamespace(model="m", stream=False, **fields)


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.mark.parametrize(
    ("asked", "input_tokens", "max_tokens"),
    [
        (body(prompt="one two three four", max_tokens=7), 5, 7),
        (body(prompt=[1, 2, 3], max_tokens=None), 3, 1024),
        (body(prompt=[[1, 2], [3]], max_tokens=1), 3, 1),
        (body(prompt=["abcd", "efgh"], max_tokens=1), 4, 1),
        (body(messages=[{"content": "abcdefgh"}, {"content": None}], max_tokens=9, max_completion_tokens=5), 4, 5),
        (body(messages=[{"content": [{"type": "text", "text": "abcd"}, {"type": "image_url"}]}], max_tokens=2), 2, 2),
    ],
)
def test_the_size_of_a_request_is_read(asked: Any, input_tokens: int, max_tokens: int) -> None:
    request = read_request(asked, {"X-SLO-TTFT-MS": "1500"}, Slo(), token_counter(None))
    assert (request.input_tokens, request.max_tokens, request.ttft_limit_s) == (input_tokens, max_tokens, 1.5)


def test_every_event_with_text_counts_one_token() -> None:
    batch = [
        chunk(role="assistant", content=""),
        chunk(content="a"),
        chunk(content="b") + chunk(content=""),
        USAGE,
        DONE,
    ]
    assert tokens_of(batch) == 2
    assert usage_of(batch) == (3, 2)
    assert tokens_of(event({"choices": [{"text": "x"}]})) == 1


def test_usage_of_a_stream_is_added_to_and_nothing_else_changes() -> None:
    batch = [chunk(content="é"), USAGE + DONE]
    assert usage_of(batch) is not None
    assert usage_of(chunk(content='"usage"')) is None
    text, last = with_usage(batch, {"energy_j": 1.5, "tenant": "a"})
    assert text == batch[0]
    usage, done = last.split("\n\n")[:2]
    told = json.loads(usage.removeprefix("data: "))["usage"]
    assert told == {"prompt_tokens": 3, "completion_tokens": 2, "energy_j": 1.5, "tenant": "a"}
    assert f"{done}\n\n" == DONE


def test_a_whole_answer_says_its_tokens_and_takes_the_energy() -> None:
    answer = SimpleNamespace(usage=SimpleNamespace(prompt_tokens=4, completion_tokens=9))
    assert (tokens_of(answer), usage_of(answer)) == (9, (4, 9))
    assert with_usage(answer, {"energy_j": None}).usage.energy_j is None
    failed = SimpleNamespace(error=SimpleNamespace(message="no"))
    assert (tokens_of(failed), usage_of(failed), with_usage(failed, {"energy_j": 1.0})) == (0, None, failed)
