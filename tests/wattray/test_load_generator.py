"""The load generator against a small real HTTP server that behaves and misbehaves."""

import asyncio
import json

import pytest
from aiohttp import web

from control_plane.domain import Request, Slo
from wattray.load_generator import Endpoint, Sent, replay


async def _complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    tokens = body["simulated_output_tokens"]
    if tokens == 13:
        return web.json_response({"error": {"message": "no"}}, status=503)
    if tokens == 14:
        return web.Response(text="Bad gateway", status=502)
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    if tokens == 15:
        await answer.write(b"data: {broken\n\n")
        return answer
    if tokens == 16:
        await answer.write(b'data: {"choices": [{"index": 0}]}\n\n')
        return answer
    if tokens == 17:
        await answer.write(b"data: {" + b"x" * 1_000_000 + b"\n\n")
        return answer
    if tokens == 18:
        told = {"error": {"message": "the replica failed in the middle of the answer", "code": "replica_lost"}}
        await answer.write(f"data: {json.dumps(told)}\n\ndata: [DONE]\n\n".encode())
        return answer
    if tokens == 21:
        empty = {"choices": [{"index": 0, "text": "", "finish_reason": None}]}
        await answer.write(f": a comment\n\ndata: {json.dumps(empty)}\n\n".encode())
        await asyncio.sleep(0.3)
    for last in (False, True):
        choice = {"index": 0, "text": " tok", "finish_reason": "stop" if last else None}
        await answer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        await asyncio.sleep(0.1)
        if tokens == 7:
            return answer
    usage = {"choices": [], "usage": {"completion_tokens": tokens if tokens != 9 else 3}}
    await answer.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
    return answer


def play(trace: list[Request]) -> list[Sent]:
    async def run() -> list[Sent]:
        app = web.Application()
        app.router.add_post("/v1/completions", _complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            return await replay(Endpoint(f"http://127.0.0.1:{port}", "m"), trace)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_requests_go_out_at_their_times_and_latencies_are_the_clients() -> None:
    sent = play([Request("a", 0.0, 5, 20), Request("b", 0.4, 5, 20)])
    assert [result.error for result in sent] == [None, None]
    assert sent[1].sent_s == pytest.approx(0.4, abs=0.15)
    for result in sent:
        assert 0 < result.ttft_s < 0.15
        assert result.mean_tbt_s == pytest.approx(0.1 / 19, rel=0.6)
        assert result.met(Slo())


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (13, "HTTP 503: no"),
        (14, "HTTP 502: Bad gateway"),
        (7, "ended after 0 of 7"),
        (9, "ended after 3 of 9 tokens"),
        (15, "JSONDecodeError"),
        (16, "not an event of a completion"),
        (17, "LineTooLong"),
        (18, "the replica failed in the middle of the answer"),
    ],
)
def test_a_failure_is_a_result_with_its_reason(tokens: int, told: str) -> None:
    [result] = play([Request("a", 0.0, 5, tokens)])
    assert result.error is not None
    assert told in result.error
    assert not result.met(Slo())


def test_the_first_token_has_come_when_text_has() -> None:
    [result] = play([Request("a", 0.0, 5, 21)])
    assert result.error is None
    assert 0.3 <= result.ttft_s < 0.45
    assert result.mean_tbt_s == pytest.approx(0.1 / 20, rel=0.6)


def test_one_broken_answer_does_not_end_the_replay() -> None:
    sent = play([Request("a", 0.0, 5, 15), Request("b", 0.0, 5, 20)])
    assert [result.error is None for result in sent] == [False, True]
