"""Prompts are counted beside the event loop, which goes on meanwhile, within a bound."""

import asyncio
import threading

import pytest

from serve_apps.api_errors import ApiError
from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.token_counter import INLINE_CHARS, TokenCounter

LONG = "a" * (INLINE_CHARS + 1)


class HeldTokenizer:
    """Counts characters, and a long text only when it is let go; notes the threads that asked."""

    def __init__(self) -> None:
        self.go, self.threads = threading.Event(), set[int]()

    def count_tokens(self, text: str) -> int:
        self.threads.add(threading.get_ident())
        if len(text) > INLINE_CHARS:
            assert self.go.wait(60)
        return len(text)

    def encode(self, text: str) -> list[int]:
        raise AssertionError("only counts are asked for")


def test_the_loop_and_short_prompts_go_on_while_a_long_one_is_counted() -> None:
    held = HeldTokenizer()

    async def run() -> None:
        counter = TokenCounter(held)
        long = asyncio.create_task(counter.count(LONG))
        # Were the long one counted in the loop, these lines would never be reached.
        assert [await counter.count("abc") for _ in range(3)] == [3, 3, 3]
        assert not long.done()
        held.go.set()
        assert await long == len(LONG)

    asyncio.run(run())
    assert len(held.threads) == 2


def test_beyond_the_bound_clients_are_told_to_come_later_and_then_served() -> None:
    held = HeldTokenizer()

    async def run() -> None:
        counter = TokenCounter(held, waiting_chars=len(LONG))
        # One prompt is taken however long it is; a second one waits elsewhere.
        first = asyncio.create_task(counter.count(LONG + LONG))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as told:
            await counter.count(LONG)
        assert (told.value.status, told.value.code) == (429, "overloaded")
        held.go.set()
        assert await first == 2 * len(LONG)
        assert await counter.count(LONG) == len(LONG)

    asyncio.run(run())


def test_a_client_that_goes_away_gives_its_place_back() -> None:
    held = HeldTokenizer()

    async def run() -> None:
        counter = TokenCounter(held, waiting_chars=2 * len(LONG))
        running = asyncio.create_task(counter.count(LONG))
        queued = asyncio.create_task(counter.count(LONG))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        another = asyncio.create_task(counter.count(LONG))
        held.go.set()
        assert await asyncio.gather(running, another) == [len(LONG)] * 2

    asyncio.run(run())


@pytest.mark.parametrize("text", ["", "one", "größer als 🎉", "x" * 3 * INLINE_CHARS])
def test_a_count_is_the_length_of_the_encoding(text: str) -> None:
    tokenizer = ModelTokenizer.of_bytes()
    assert asyncio.run(TokenCounter(tokenizer).count(text)) == len(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text or text == ""
