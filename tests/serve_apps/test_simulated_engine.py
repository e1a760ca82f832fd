"""The simulated engine on its own: no Ray, wall time, milliseconds."""

import asyncio
import time
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.hardware.replica_model import ReplicaLimits
from serve_apps.engines.protocol import Chunk, EngineError, GenerateRequest
from serve_apps.engines.simulated import SimulatedEngine

PROFILE = load_profile(DEFAULT_PROFILE)


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    return SimulatedNode.create(tmp_path / "gpus.bin", 8, PROFILE.gpu)


def engine(node: SimulatedNode, kv_tokens: int = 10_000) -> SimulatedEngine:
    return SimulatedEngine(PROFILE.times(8), ReplicaLimits(kv_tokens), node, range(8), stream_interval_s=0.03)


def asked(name: str, input_tokens: int = 20, stop_after: int = 10, max_tokens: int = 100) -> GenerateRequest:
    return GenerateRequest(name, "", input_tokens, max_tokens, stop_after)


async def collect(running: SimulatedEngine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in running.generate(request)]


def test_a_stream_carries_every_token_and_ends_with_its_reason(node: SimulatedNode) -> None:
    async def play() -> list[Chunk]:
        running = engine(node)
        chunks = await collect(running, asked("a", stop_after=15))
        await running.shutdown()
        return chunks

    chunks = asyncio.run(play())
    assert sum(chunk.tokens for chunk in chunks) == 15
    assert len("".join(chunk.text for chunk in chunks).split()) == 15
    assert [chunk.finish_reason for chunk in chunks][-1] == "stop"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_max_tokens_cuts_a_generation(node: SimulatedNode) -> None:
    async def play() -> list[Chunk]:
        running = engine(node)
        return await collect(running, asked("a", stop_after=50, max_tokens=5))

    chunks = asyncio.run(play())
    assert sum(chunk.tokens for chunk in chunks) == 5
    assert chunks[-1].finish_reason == "length"


def test_it_takes_the_models_time_and_a_lower_clock_takes_longer(node: SimulatedNode) -> None:
    async def timed() -> float:
        running = engine(node)
        await collect(running, asked("warm", stop_after=2))
        began_s = time.monotonic()
        await collect(running, asked("a", stop_after=30))
        await running.shutdown()
        return time.monotonic() - began_s

    fast_s = asyncio.run(timed())
    modelled_s = 30 * PROFILE.times(8).alpha_ps(1980)[1] / 1e12
    assert fast_s >= modelled_s
    for index in range(8):
        node.lock_freq(index, 795)
    time.sleep(0.1)
    assert asyncio.run(timed()) > 1.3 * modelled_s


def test_busy_gpus_draw_power_and_an_ended_engine_frees_them(node: SimulatedNode) -> None:
    async def play() -> tuple[float, float]:
        running = engine(node)
        generation = asyncio.create_task(collect(running, asked("a", stop_after=30)))
        await asyncio.sleep(0.1)
        busy_w = node.gpu(0).power_w()
        await generation
        await asyncio.sleep(0.05)
        idle_w = node.gpu(0).power_w()
        await running.shutdown()
        return busy_w, idle_w

    busy_w, idle_w = asyncio.run(play())
    assert busy_w > 300
    assert idle_w == PROFILE.gpu.context_w
    assert node.gpu(0).power_w() == PROFILE.gpu.idle_w


def test_closing_a_stream_frees_its_place(node: SimulatedNode) -> None:
    async def play() -> int:
        running = engine(node)
        stream = running.generate(asked("a", stop_after=5000, max_tokens=5000))
        await anext(stream)
        await stream.aclose()
        return running.stats().running

    assert asyncio.run(play()) == 0


def test_what_cannot_fit_is_refused_with_the_numbers(node: SimulatedNode) -> None:
    async def play() -> None:
        running = engine(node, kv_tokens=100)
        with pytest.raises(EngineError, match="exceed the KV cache of 100"):
            await collect(running, asked("a", input_tokens=90, stop_after=20))
        assert sum(chunk.tokens for chunk in await collect(running, asked("b", stop_after=4))) == 4

    asyncio.run(play())


def test_a_stopped_engine_says_so(node: SimulatedNode) -> None:
    async def play() -> None:
        running = engine(node)
        waiting = asyncio.create_task(collect(running, asked("a", stop_after=5000, max_tokens=5000)))
        await asyncio.sleep(0.1)
        await running.shutdown()
        with pytest.raises(EngineError, match="stopped"):
            await waiting
        assert not running.alive()
        with pytest.raises(EngineError, match="has stopped"):
            await collect(running, asked("b"))

    asyncio.run(play())
