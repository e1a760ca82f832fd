"""The router's HTTP side in this process, with scripted replicas: shapes, limits, errors, and what counts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import Depends, HTTPException
from router_fakes import RouterParts, ScriptedReplicas, answers, does, router_of
from tests_support import ROOT

from actors.messages import TenantUsage
from control_plane.domain import RequestSlo
from control_plane.settings import parse_settings
from serve_apps.dispatch import Outcome, ReplicaLostError
from serve_apps.engines.protocol import Chunk, RequestRefusedError
from serve_apps.openai_api import REFUSED, ChatRequest, CompletionRequest
from serve_apps.router import make_api

MODEL = "llama2-70b"


def ask(parts: RouterParts, use: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(make_api(parts.desk), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            return await use(client)

    return asyncio.run(run())


def post(parts: RouterParts, body: object, path: str = "/v1/completions") -> httpx.Response:
    if isinstance(body, bytes):
        headers = {"content-type": "application/json"}
        return ask(parts, lambda client: client.post(path, content=body, headers=headers))  # type: ignore[no-any-return]
    return ask(parts, lambda client: client.post(path, json=body))  # type: ignore[no-any-return]


def completion(**more: object) -> dict[str, object]:
    return {"model": MODEL, "prompt": "one two three", "max_tokens": 12, **more}


def chat(**more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "one two"}], **more}


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def three_words() -> RouterParts:
    return router_of(ScriptedReplicas(r0=answers("a", " b", " c", reason="length")))


# answers


def test_a_completion_has_text_usage_and_the_engines_reason() -> None:
    answer = post(three_words(), completion()).json()
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "logprobs": None, "text": "a b c"}]
    told = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert answer["usage"] == {**told, "predicted_completion_tokens": 7, "energy_j": None}
    assert answer["object"] == "text_completion"


def test_a_chat_answers_as_the_assistant() -> None:
    answer = post(three_words(), chat(), "/v1/chat/completions").json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "a b c"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["object"] == "chat.completion"


def test_the_first_delta_of_a_chat_stream_has_the_role() -> None:
    told = events(post(three_words(), chat(stream=True), "/v1/chat/completions"))
    deltas = [event["choices"][0]["delta"] for event in told]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "a"}, {"content": " b"}, {"content": " c"}]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None, None, None, "length"]


def metered_words() -> RouterParts:
    return router_of(ScriptedReplicas(r0=does(Chunk("a", 1), Chunk(" b", 1, "stop", energy_j=12.3456))))


def test_an_answer_tells_its_energy_in_usage_and_in_a_header() -> None:
    response = post(metered_words(), completion())
    assert response.json()["usage"]["energy_j"] == 12.346
    assert response.headers["x-wattray-energy-j"] == "12.346"
    told = events(post(metered_words(), completion(stream=True, stream_options={"include_usage": True})))
    assert told[-1]["usage"]["energy_j"] == 12.346
    assert told[-1]["usage"]["predicted_completion_tokens"] == 7


def test_energy_and_tokens_are_counted_for_the_tenant_that_the_header_names() -> None:
    parts = metered_words()

    async def two(client: httpx.AsyncClient) -> None:
        await client.post("/v1/completions", json=completion(), headers={"x-wattray-tenant": "team-a"})
        await client.post("/v1/completions", json=completion(stream=True))

    ask(parts, two)
    used = parts.desk.dispatcher.ledger.by_tenant()
    assert used == {"team-a": TenantUsage(1, 3, 2, 12.3456), "default": TenantUsage(1, 3, 2, 12.3456)}


def test_an_answer_that_breaks_off_counts_its_tokens_and_says_that_its_energy_is_unknown() -> None:
    parts = router_of(ScriptedReplicas(r0=does(Chunk("a", 1), ReplicaLostError("gone"))))
    post(parts, completion(stream=True))
    assert parts.desk.dispatcher.ledger.by_tenant() == {"default": TenantUsage(1, 3, 1, 0.0, 1)}


def test_beyond_so_many_that_wait_requests_are_told_to_come_back() -> None:
    """Those that stream already do not count, and a queue that has shrunk takes requests again."""
    settings = parse_settings({"serve": {"max_waiting_requests": 2}})
    slow = does(0.2, Chunk("a", 1), 0.3, Chunk("b", 1, "stop"))
    parts = router_of(ScriptedReplicas(r0=slow), settings)

    async def burst(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = [asyncio.create_task(client.post("/v1/completions", json=completion(stream=True))) for _ in range(2)]
        await asyncio.sleep(0.1)
        refused = await client.post("/v1/completions", json=completion())
        while parts.policy.names().count("first_token") < 2:
            await asyncio.sleep(0.01)
        later = await client.post("/v1/completions", json=completion())
        return [refused, later, *(await asyncio.gather(*first))]

    refused, later, *first = ask(parts, burst)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) > 0
    assert [response.status_code for response in (later, *first)] == [200, 200, 200]
    assert (parts.counts.accepted, parts.counts.ended[Outcome.REFUSED]) == (3, 1)
    assert parts.counts.slo_missed >= 1  # whoever is sent away has not been served in time


def test_limits_in_headers_are_the_requests_own() -> None:
    parts = three_words()
    headers = {"x-slo-ttft-ms": "120", "x-slo-tpot-ms": "35.5"}
    ask(parts, lambda client: client.post("/v1/completions", json=completion(), headers=headers))
    ask(parts, lambda client: client.post("/v1/completions", json=completion()))
    (_, _, own), (_, _, usual) = parts.replicas.sent
    assert (own.ttft_limit_s, own.tbt_limit_s) == (0.12, 0.0355)
    assert own.own_limits == RequestSlo(0.12, 0.0355)
    assert (usual.ttft_limit_s, usual.tbt_limit_s, usual.own_limits) == (0.25, 0.1, None)


def test_who_asks_and_what_they_expect_reach_the_length_predictor() -> None:
    learned = parse_settings({"lengths": "learned"})
    parts = router_of(ScriptedReplicas(r0=answers("a", "b", reason="stop")), learned)
    mail = {"x-wattray-tenant": "t", "x-wattray-app": "mail"}

    async def often(client: httpx.AsyncClient) -> list[int]:
        told = []
        for headers in [mail] * 101 + [{**mail, "x-wattray-output-tokens": "7"}, {"x-wattray-tenant": "t"}]:
            answer = await client.post("/v1/completions", json=completion(), headers=headers)
            told.append(answer.json()["usage"]["predicted_completion_tokens"])
        return told[100:]

    learned_of_mail, hinted, of_others = ask(parts, often)
    assert (learned_of_mail, hinted) == (2, 7)
    assert of_others > 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-slo-ttft-ms", "soon"),
        ("x-slo-ttft-ms", "-1"),
        ("x-slo-ttft-ms", "nan"),
        ("x-slo-tpot-ms", "inf"),
        ("x-slo-tpot-ms", "0"),
        ("x-wattray-tenant", "a b"),
        ("x-wattray-tenant", "x" * 65),
        ("x-wattray-tenant", ""),
        ("x-wattray-app", "a b"),
        ("x-wattray-output-tokens", "0"),
        ("x-wattray-output-tokens", "1e3"),
        ("x-wattray-output-tokens", "9" * 30),
    ],
)
def test_a_header_that_cannot_be_used_is_refused_by_name(name: str, value: str) -> None:
    parts = three_words()
    response = ask(parts, lambda client: client.post("/v1/completions", json=completion(), headers={name: value}))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == name
    assert parts.replicas.sent == []


def test_usage_comes_at_the_end_of_a_stream_that_asks_for_it() -> None:
    told = events(post(three_words(), completion(stream=True, stream_options={"include_usage": True})))
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["completion_tokens"] == 3
    assert all("usage" not in event for event in told[:-1])


def test_fields_that_clients_send_as_null_are_as_if_they_were_not_there() -> None:
    empty = dict.fromkeys(
        ("max_tokens", "stream", "stream_options", "n", "stop", "temperature", "logprobs", "tools", "response_format")
    )
    parts = three_words()
    assert post(parts, chat(**empty), "/v1/chat/completions").status_code == 200
    [(_, _, request)] = parts.replicas.sent
    assert request.max_tokens == 1024


def test_text_parts_tool_messages_and_empty_content_are_read() -> None:
    parts = three_words()
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    assert post(parts, chat(messages=messages), "/v1/chat/completions").status_code == 200
    assert parts.replicas.sent[0][2].prompt == "be brief\n\n42"


def test_a_long_stop_text_and_half_a_surrogate_pair_are_read() -> None:
    parts = three_words()
    assert post(parts, json.dumps(completion(prompt="a \ud800", stop="x" * 40)).encode()).status_code == 200
    assert parts.replicas.sent[0][2].sampling.stop == ("x" * 40,)


def test_token_ids_and_sampling_reach_the_engine() -> None:
    parts = three_words()
    wanted = completion(prompt=[5, 6, 7, 8], temperature=0.5, top_p=0.9, seed=3, stop=["\n"], simulated_output_tokens=4)
    assert post(parts, wanted).status_code == 200
    [(_, _, request)] = parts.replicas.sent
    assert (request.token_ids, request.input_tokens) == ((5, 6, 7, 8), 4)
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.stop) == (0.5, 3, ("\n",))
    assert request.extensions == {"simulated_output_tokens": 4}
    assert request.ttft_limit_s == 0.25


# errors have OpenAI's shape


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "told"),
    [
        ("GET", "/v1/nothing", b"", 404, "there is no /v1/nothing here"),
        ("GET", "/v1/completions", b"", 405, "GET is not allowed"),
        ("POST", "/v1/completions", b'{"model": ', 400, "not JSON"),
        ("POST", "/v1/completions", b'{"model": "\xff\xfe"}', 400, "not JSON in UTF-8"),
        ("POST", "/v1/completions", b"[" * 100_000, 400, "JSON"),
        ("POST", "/v1/completions", b'"text"', 400, "valid dictionary"),
        ("POST", "/v1/completions", json.dumps({"model": MODEL}).encode(), 400, "prompt: Field required"),
        ("POST", "/v1/completions", json.dumps(completion(model="gpt-9")).encode(), 404, "'gpt-9' is not served here"),
        ("POST", "/v1/completions", json.dumps(completion(max_tokens=0)).encode(), 400, "max_tokens"),
        ("POST", "/v1/completions", json.dumps(completion(max_tokens=1.5)).encode(), 400, "max_tokens"),
        ("POST", "/v1/completions", json.dumps(completion(prompt={"a": 1})).encode(), 400, "prompt"),
        ("POST", "/v1/completions", json.dumps(completion(prompt=[])).encode(), 400, "prompt: an empty list"),
        ("POST", "/v1/completions", json.dumps(completion(prompt=["a", "b"])).encode(), 400, "2 prompts"),
        ("POST", "/v1/completions", json.dumps(completion(temperature=9)).encode(), 400, "temperature"),
        ("POST", "/v1/completions", json.dumps(completion(simulated_output_tokens="x")).encode(), 400, "simulated_out"),
        ("POST", "/v1/completions", json.dumps(completion(stream_options={})).encode(), 400, "stream_options"),
        ("POST", "/v1/chat/completions", json.dumps(chat(messages=[])).encode(), 400, "messages"),
        ("POST", "/v1/completions", json.dumps(completion(model="\ud800")).encode(), 404, "is not served here"),
        ("POST", "/v1/completions", json.dumps(completion(temperature=float("nan"))).encode(), 400, "temperature"),
        ("POST", "/v1/completions", b'{"max_tokens": 1' + b"0" * 5000 + b"}", 400, "JSON"),
        ("POST", "/v1/completions", json.dumps(completion(stop=["x"] * 17)).encode(), 400, "stop: List should have"),
        ("POST", "/v1/completions", b"", 400, "Field required"),
        ("OPTIONS", "/v1/completions", b"", 405, "OPTIONS is not allowed"),
        ("GET", "/v1/%ff%00", b"", 404, "there is no /v1/"),
    ],
)
def test_every_error_has_openais_shape(method: str, path: str, content: bytes, status: int, told: str) -> None:
    parts = three_words()
    headers = {"content-type": "application/json"}
    answer = ask(parts, lambda client: client.request(method, path, content=content, headers=headers))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert told in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert parts.host.take_arrivals() == []
    assert parts.counts.ended["refused"] == 1
    assert parts.counts.accepted == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"best_of": 3},
        {"logprobs": 0},
        {"logprobs": True},
        {"top_logprobs": 5},
        {"echo": True},
        {"suffix": "end"},
        {"tools": [{"type": "function"}]},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"5": 1}},
        {"modalities": ["text", "audio"]},
    ],
)
def test_what_no_engine_honours_is_refused_by_name(asked: dict[str, object]) -> None:
    answer = post(three_words(), chat(**asked), "/v1/chat/completions")
    assert answer.status_code == 400
    [name] = asked
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 1},
        {"logprobs": False},
        {"tools": []},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "whatever": 3},
    ],
)
def test_what_changes_nothing_is_passed_over(asked: dict[str, object]) -> None:
    assert post(three_words(), chat(**asked), "/v1/chat/completions").status_code == 200


def test_an_image_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    answer = post(three_words(), chat(messages=[{"role": "user", "content": [part]}]), "/v1/chat/completions")
    assert answer.status_code == 400
    assert "image_url" in answer.json()["error"]["message"]


def test_without_a_replica_there_is_a_typed_503_and_it_is_counted() -> None:
    parts = router_of(ScriptedReplicas())
    answer = post(parts, completion())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_replica"
    assert int(answer.headers["retry-after"]) > 0
    assert parts.counts.ended["unavailable"] == 1
    assert parts.meter.ended == [("none", "unavailable", None)]


@pytest.mark.parametrize("stream", [False, True])
def test_three_dead_replicas_are_a_typed_503(stream: bool) -> None:
    dead = does(ReplicaLostError("the actor died"))
    parts = router_of(ScriptedReplicas(r0=dead, r1=dead, r2=dead))
    answer = post(parts, completion(stream=stream))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "replica_lost"
    assert len(parts.replicas.sent) == 3
    assert parts.counts.by_name() == {
        "accepted": 1,
        "completed": 0,
        "failed": 0,
        "cancelled": 0,
        "refused": 0,
        "unavailable": 1,
        "spilled": 0,
        "retried": 2,
        "slo_met": 0,
        "slo_missed": 1,
    }


def test_what_the_engine_refuses_is_the_clients_error() -> None:
    parts = router_of(ScriptedReplicas(r0=does(RequestRefusedError("no room"))))
    answer = post(parts, completion())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no room"
    assert parts.counts.ended["refused"] == 1


def test_what_nobody_expected_is_a_typed_500() -> None:
    parts = router_of(ScriptedReplicas(r0=does(KeyError("x"))))
    answer = post(parts, completion())
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert parts.counts.ended["failed"] == 1


def test_a_replica_lost_in_the_middle_ends_the_stream_with_a_typed_error() -> None:
    parts = router_of(ScriptedReplicas(r0=does(Chunk("a", 1), ReplicaLostError("the actor died"))))
    told = events(post(parts, completion(stream=True, stream_options={"include_usage": True})))
    assert told[0]["choices"][0]["text"] == "a"
    assert told[-1]["error"]["code"] == "replica_lost"
    assert "in the middle of the answer" in told[-1]["error"]["message"]
    assert parts.counts.ended["failed"] == 1


# limits


def test_a_large_body_is_refused_by_its_declared_length_without_being_read() -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 1_000_000

    parts = three_words()
    headers = {"content-length": "100000000", "content-type": "application/json"}
    answer = ask(parts, lambda client: client.post("/v1/completions", content=body(), headers=headers))
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert read == 0
    assert parts.counts.ended["refused"] == 1


def test_a_large_body_without_a_length_is_read_no_further_than_the_limit() -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 100_000

    parts = three_words()
    headers = {"content-type": "application/json"}
    answer = ask(parts, lambda client: client.post("/v1/completions", content=body(), headers=headers))
    assert answer.status_code == 413
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert read == 11
    assert parts.counts.ended["refused"] == 1


def test_very_many_messages_are_refused_quickly() -> None:
    roomy = parse_settings({"serve": {"max_body_bytes": 16_000_000}})
    parts = router_of(ScriptedReplicas(r0=answers("a")), roomy)
    wanted = chat(messages=[{"role": "user", "content": "x"}] * 300_000)
    content = json.dumps(wanted).encode()
    began_s = time.monotonic()
    answer = post(parts, content, "/v1/chat/completions")
    took_s = time.monotonic() - began_s
    assert answer.status_code == 400
    assert "messages" in answer.json()["error"]["message"]
    assert len(answer.content) < 1000
    assert took_s < 5
    began_s = time.monotonic()
    assert post(three_words(), content, "/v1/chat/completions").status_code == 413
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize(
    ("wanted", "code", "told"),
    [
        (completion(prompt="x " * 40_000), "context_length_exceeded", "40000 tokens; at most 32768"),
        (completion(max_tokens=5000), "max_tokens_too_large", "5000 is more than the 4096 tokens"),
        (completion(prompt=[1] * 40_000), "context_length_exceeded", "40000 tokens"),
    ],
)
def test_a_request_over_a_limit_is_told_the_limit_and_counts_for_no_forecast(
    wanted: dict[str, object], code: str, told: str
) -> None:
    parts = three_words()
    error = post(parts, wanted).json()["error"]
    assert error["code"] == code
    assert told in error["message"]
    assert parts.host.take_arrivals() == []
    assert parts.replicas.sent == []


def test_prompt_and_answer_together_fit_every_replicas_cache() -> None:
    roomy = parse_settings({"serve": {"max_prompt_tokens": 60_000}})
    parts = router_of(ScriptedReplicas(r0=answers("a")), roomy)
    assert post(parts, completion(prompt="x " * 47_000, max_tokens=1522)).status_code == 200
    error = post(parts, completion(prompt="x " * 47_000, max_tokens=1523)).json()["error"]
    assert "47000 tokens; at most 46999 fit with an answer of 1523" in error["message"]
    # Without a limit of its own the answer gets what is left.
    assert post(parts, completion(prompt="x " * 48_000, max_tokens=None)).status_code == 200
    assert parts.replicas.sent[-1][2].max_tokens == 522


def test_an_admitted_request_is_an_arrival_with_its_expected_length() -> None:
    parts = three_words()
    assert post(parts, completion()).status_code == 200
    [arrival] = parts.host.take_arrivals()
    assert (arrival.input_tokens, arrival.expected_output_tokens) == (3, 7.0)


def test_health_tells_replicas_and_counts() -> None:
    parts = three_words()

    async def both(client: httpx.AsyncClient) -> Any:
        await client.post("/v1/completions", json=completion())
        return (await client.get("/healthz")).json()

    told = ask(parts, both)
    assert told["replicas"] == 1
    assert (told["accepted"], told["completed"], told["failed"]) == (1, 1, 0)


def test_the_drain_is_as_long_as_the_longest_answer_takes_at_the_tbt_limit() -> None:
    settings = parse_settings({"serve": {"max_output_tokens": 2000}, "slo": {"tbt_s": 0.05}})
    assert settings.drain_s == pytest.approx(2000 * 0.05 + 2.0)


def test_a_guard_stands_before_every_endpoint_under_v1_and_refuses_in_openais_shape() -> None:
    def guard() -> None:
        raise HTTPException(401, "no key", {"www-authenticate": "Bearer"})

    parts = three_words()
    transport = httpx.ASGITransport(make_api(parts.desk, [Depends(guard)]))

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
            posts = [await client.post(f"/v1/{path}", json=chat()) for path in ("completions", "chat/completions")]
            return [*posts, await client.get("/v1/models"), await client.get("/healthz")]

    *guarded, health = asyncio.run(run())
    assert [answer.status_code for answer in guarded] == [401, 401, 401]
    assert guarded[1].json()["error"] | {"param": 0, "code": 0} == {
        "message": "no key",
        "type": "authentication_error",
        "param": 0,
        "code": 0,
    }
    assert guarded[1].headers["www-authenticate"] == "Bearer"
    assert health.status_code == 200
    assert parts.replicas.sent == []


def test_the_page_about_the_interface_names_every_field_that_is_refused_and_every_outcome() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    refused = page[page.index("**Refused**") : page.index("**Passed over**")]
    assert [name for name in REFUSED if f"`{name}`" not in refused] == []
    assert [str(outcome) for outcome in Outcome if f"| `{outcome}` |" not in page] == []
    used = page[page.index("**Used**") : page.index("**Refused**")]
    fields = set(CompletionRequest.model_fields) | set(ChatRequest.model_fields)
    assert [name for name in fields if f"`{name}" not in used] == []
