"""Tokens a second of the transformers engine behind HTTP, router, Ray Serve and replica, against the library alone.

    python benchmarks/engine/behind_the_stack.py [--rounds 4] [--answer 200] [--json OUT]

Both run the small model on one thread with the same limits and the same requests, so many at a time; rounds alternate,
and each ratio is of two rounds that follow each other. The library runs in a process of its own while the stack idles.
The client of the stack is a process too and shares the machine with it. Needs a machine on which no Ray runs.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONCURRENT = (8, 32)
PROMPT = "Energy is what a GPU draws, times how long it does. "
LIMIT_TOKENS = 65_536


async def through_the_stack(url: str, concurrent: int, answer: int) -> float:
    """Tokens a second; raises RuntimeError for an answer that is not whole."""
    import aiohttp

    async def one(session: aiohttp.ClientSession) -> int:
        body = {
            "model": "llama2-70b",
            "prompt": PROMPT,
            "max_tokens": answer,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tokens = 0
        async with session.post(f"{url}/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if tokens != answer:
            raise RuntimeError(f"{tokens} tokens of {answer}: {response.status}")
        return tokens

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
        began_s = time.perf_counter()
        tokens = await asyncio.gather(*(one(session) for _ in range(concurrent)))
        return sum(tokens) / (time.perf_counter() - began_s)


async def library_alone(answer: int) -> None:
    """Reads a number of concurrent requests a line, and answers with tokens a second."""
    from serve_apps.engines.admission_queue import BatchLimits
    from serve_apps.engines.causal_model import load_model
    from serve_apps.engines.model_tokenizer import tokenizer_of
    from serve_apps.engines.paged_batch import Answered, PagedBatch
    from serve_apps.engines.transformers_site import BATCH_REQUESTS, BATCH_TOKENS, PAGE_TOKENS

    batch = PagedBatch(load_model(None, "cpu"), BatchLimits(LIMIT_TOKENS, PAGE_TOKENS, BATCH_TOKENS, BATCH_REQUESTS))
    batch.start()
    prompt = tokenizer_of(None).encode(PROMPT)
    rounds = 0
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        done: asyncio.Queue[int] = asyncio.Queue()

        def told(answered: Answered, done: asyncio.Queue[int] = done) -> None:
            if answered.finished:
                done.put_nowait(len(answered.tokens))

        began_s = time.perf_counter()
        for number in range(int(line)):
            batch.submit(f"{rounds}-{number}", prompt, answer, None, told)
        tokens = sum([await done.get() for _ in range(int(line))])
        rounds += 1
        print(tokens / (time.perf_counter() - began_s), flush=True)
    batch.stop()


def child(*words: str) -> subprocess.Popen[str]:
    """In a session of its own, as Ray's processes are: Linux shares busy cores out between sessions."""
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def compare(url: str, rounds: int, answer: int) -> dict[str, object]:
    bare = child("--bare", "--answer", str(answer))
    client = child("--client", url, "--answer", str(answer))
    for process in (bare, client):
        assert process.stdout is not None
        process.stdout.readline()
    found: dict[str, object] = {"cores": os.cpu_count(), "answer_tokens": answer}
    for concurrent in CONCURRENT:
        pairs = []
        for number in range(rounds + 1):
            pair = float(ask(bare, str(concurrent))), float(ask(client, str(concurrent)))
            if number > 0:  # the first one warms both up
                pairs.append(pair)
        ratios = [stack / alone for alone, stack in pairs]
        found[str(concurrent)] = {
            "library_tokens_per_s": statistics.median(alone for alone, _ in pairs),
            "stack_tokens_per_s": statistics.median(stack for _, stack in pairs),
            "ratio": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
    for process in (bare, client):
        ask(process, "")
        process.wait(30)
    return found


async def client_of(url: str, answer: int) -> None:
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        print(await through_the_stack(url, int(line), answer), flush=True)


def measure(rounds: int, answer: int) -> dict[str, object]:
    from control_plane.domain import Load
    from control_plane.settings import parse_settings
    from wattray import lifecycle
    from wattray.ray_head import Ports
    from wattray.take_down import take_down

    settings = parse_settings(
        {
            "policy": "single-pool",
            "gpu": {"count": 2},
            "serve": {"engine": "transformers", "port": 9_431, "kv_cache_tokens": LIMIT_TOKENS},
        }
    )
    running = lifecycle.up(settings, Ports(9_432, 9_433, 9_434), Load(), None, print, own_head=True)
    try:
        return compare(running.router_url, rounds, answer)
    finally:
        take_down(running, print)


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__)
    asking.add_argument("--rounds", type=int, default=4)
    asking.add_argument("--answer", type=int, default=200)
    asking.add_argument("--json", type=Path)
    asking.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    asking.add_argument("--client", help=argparse.SUPPRESS)
    asked = asking.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if asked.bare:
        asyncio.run(library_alone(asked.answer))
    elif asked.client:
        asyncio.run(client_of(asked.client, asked.answer))
    else:
        with tempfile.TemporaryDirectory(prefix="wt-", dir="/tmp") as folder:
            os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = folder
            os.environ["RAY_AUTH_TOKEN_PATH"] = f"{folder}/auth_token"
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            tempfile.tempdir = None
            found = measure(asked.rounds, asked.answer)
        text = json.dumps(found, indent=1)
        print(text)
        if asked.json:
            asked.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
