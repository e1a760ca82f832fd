"""The simulated engine on its own: no Ray, wall time, milliseconds."""

import asyncio
import time
from pathlib import Path

import pytest

from actors.gpu.simulated import SimulatedNode
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.hardware.replica_model import ReplicaLimits
from serve_apps.engines.protocol import Chunk, EngineError, EngineStoppedError, GenerateRequest
from serve_apps.engines.simulated import SimulatedEngine

PROFILE = load_profile(DEFAULT_PROFILE)


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    return SimulatedNode.create(tmp_path / "gpus.bin", 8, PROFILE.gpu)


async def engine(
    node: SimulatedNode, kv_tokens: int = 10_000, stream_interval_s: float = 0.03, load_s: float = 0.0
) -> SimulatedEngine:
    made = SimulatedEngine(PROFILE.times(8), ReplicaLimits(kv_tokens), node, range(8), stream_interval_s, load_s)
    await made.load()
    return made


def asked(name: str, input_tokens: int = 20, stop_after: int | None = 10, max_tokens: int = 100) -> GenerateRequest:
    extensions = {} if stop_after is None else {"simulated_output_tokens": stop_after}
    return GenerateRequest(name, "", input_tokens, max_tokens, extensions=extensions)


async def collect(running: SimulatedEngine, request: GenerateRequest) -> list[Chunk]:
    return [chunk async for chunk in running.generate(request)]


def test_a_stream_carries_every_token_and_ends_with_its_reason(node: SimulatedNode) -> None:
    async def play() -> list[Chunk]:
        running = await engine(node)
        chunks = await collect(running, asked("a", stop_after=15))
        await running.shutdown()
        return chunks

    chunks = asyncio.run(play())
    assert sum(chunk.tokens for chunk in chunks) == 15
    assert len("".join(chunk.text for chunk in chunks).split()) == 15
    assert [chunk.finish_reason for chunk in chunks][-1] == "stop"
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("stop_after", "max_tokens", "tokens", "reason"),
    [(50, 5, 5, "length"), (5, 50, 5, "stop"), (5, 5, 5, "stop"), (None, 5, 5, "length")],
)
def test_an_answer_that_max_tokens_ends_says_so(
    node: SimulatedNode, stop_after: int | None, max_tokens: int, tokens: int, reason: str
) -> None:
    async def play() -> list[Chunk]:
        running = await engine(node)
        chunks = await collect(running, asked("a", stop_after=stop_after, max_tokens=max_tokens))
        await running.shutdown()
        return chunks

    chunks = asyncio.run(play())
    assert sum(chunk.tokens for chunk in chunks) == tokens
    assert chunks[-1].finish_reason == reason


def test_with_no_interval_tokens_come_after_every_iteration_without_spinning(node: SimulatedNode) -> None:
    async def play() -> tuple[list[Chunk], float, float]:
        running = await engine(node, stream_interval_s=0.0)
        began_s, cpu_s = time.monotonic(), time.process_time()
        chunks = await collect(running, asked("a", stop_after=40))
        took_s, used_s = time.monotonic() - began_s, time.process_time() - cpu_s
        await running.shutdown()
        return chunks, took_s, used_s

    chunks, took_s, used_s = asyncio.run(play())
    assert len(chunks) >= 30
    assert sum(chunk.tokens for chunk in chunks) == 40
    assert used_s < 0.3 * took_s


def test_a_failure_of_the_loop_is_logged_told_to_streams_and_shown(
    node: SimulatedNode, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> BaseException | None:
        running = await engine(node)
        generation = asyncio.create_task(collect(running, asked("a", stop_after=5000, max_tokens=5000)))
        await asyncio.sleep(0.05)
        node.close()
        with pytest.raises(EngineStoppedError, match="in the middle"):
            await asyncio.wait_for(generation, 2.0)
        assert not running.alive()
        return running.failure()

    failure = asyncio.run(play())
    assert isinstance(failure, ValueError)
    assert "the simulated engine's loop failed" in caplog.text


def test_loading_takes_its_time_and_holds_the_gpus(node: SimulatedNode) -> None:
    async def play() -> tuple[bool, float, float]:
        loading = asyncio.create_task(engine(node, load_s=0.1))
        began_s = time.monotonic()
        await asyncio.sleep(0.02)
        held_w = node.gpu(0).power_w()
        running = await loading
        took_s = time.monotonic() - began_s
        alive = running.alive()
        await running.shutdown()
        return alive, held_w, took_s

    alive, held_w, took_s = asyncio.run(play())
    assert alive
    assert held_w == PROFILE.gpu.context_w
    assert took_s >= 0.1


def test_it_takes_the_models_time_and_a_lower_clock_takes_longer(node: SimulatedNode) -> None:
    async def timed() -> float:
        running = await engine(node)
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
    assert asyncio.run(timed()) >= 30 * PROFILE.times(8).alpha_ps(795)[1] / 1e12 > 1.2 * modelled_s


def test_busy_gpus_draw_power_and_an_ended_engine_frees_them(node: SimulatedNode) -> None:
    async def play() -> tuple[float, float]:
        running = await engine(node)
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
        running = await engine(node)
        stream = running.generate(asked("a", stop_after=5000, max_tokens=5000))
        await anext(stream)
        await stream.aclose()
        return running.stats().running

    assert asyncio.run(play()) == 0


def test_what_cannot_fit_is_refused_with_the_numbers(node: SimulatedNode) -> None:
    async def play() -> None:
        running = await engine(node, kv_tokens=100)
        with pytest.raises(EngineError, match="exceed the KV cache of 100"):
            await collect(running, asked("a", input_tokens=90, stop_after=20))
        assert sum(chunk.tokens for chunk in await collect(running, asked("b", stop_after=4))) == 4

    asyncio.run(play())


def test_a_stopped_engine_says_so(node: SimulatedNode) -> None:
    async def play() -> None:
        running = await engine(node)
        waiting = asyncio.create_task(collect(running, asked("a", stop_after=5000, max_tokens=5000)))
        await asyncio.sleep(0.1)
        await running.shutdown()
        with pytest.raises(EngineError, match="stopped"):
            await waiting
        assert not running.alive()
        with pytest.raises(EngineError, match="has stopped"):
            await collect(running, asked("b"))

    asyncio.run(play())
