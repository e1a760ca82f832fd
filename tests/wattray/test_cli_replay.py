"""`wattray replay` as a process of its own against a small real HTTP server."""

import asyncio
import json
import sys
from pathlib import Path

from aiohttp import web

OWN_LOG = """when,prompt,answer
1700000000.0,50,20
not a time,50,20
1700000000.2,60,30
"""


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "m"}]})


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"engine": "simulated"})


async def _complete(request: web.Request) -> web.StreamResponse:
    tokens = (await request.json())["simulated_output_tokens"]
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    choice = {"index": 0, "text": " tok", "finish_reason": "stop"}
    for told in ({"choices": [choice]}, {"choices": [], "usage": {"completion_tokens": tokens}}):
        await answer.write(f"data: {json.dumps(told)}\n\n".encode())
    await answer.write(b"data: [DONE]\n\n")
    return answer


def replayed(*options: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""

    async def run() -> tuple[int, str, str]:
        app = web.Application()
        app.router.add_get("/v1/models", _models)
        app.router.add_get("/healthz", _health)
        app.router.add_post("/v1/completions", _complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        command = ["-m", "wattray", "replay", "--url", f"http://127.0.0.1:{runner.addresses[0][1]}", *options]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            out, told = await process.communicate()
        finally:
            await runner.cleanup()
        assert process.returncode is not None
        return process.returncode, out.decode(), told.decode()

    return asyncio.run(run())


def test_own_columns_and_bad_rows_are_read_as_simulate_reads_them_and_json_may_be_piped(tmp_path: Path) -> None:
    log = tmp_path / "own.csv"
    log.write_text(OWN_LOG)
    columns = ("--columns", "time=when,input=prompt,output=answer", "--time-unit", "s")
    code, out, told = replayed("--trace", str(log), *columns, "--skip-bad", "--json", "-")
    assert code == 0, told
    results = json.loads(out)
    assert (results["sent"], results["completed"]) == (2, 2)
    assert results["output_tokens"] == 50
    assert "1 bad rows are left out" in told
    assert "SLO attainment" in told


def test_a_bad_row_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    log = tmp_path / "own.csv"
    log.write_text(OWN_LOG)
    columns = ("--columns", "time=when,input=prompt,output=answer", "--time-unit", "s")
    code, out, told = replayed("--trace", str(log), *columns)
    assert (code, out) == (2, "")
    assert "own.csv" in told
    assert "not a time" in told
