"""Counting a prompt's tokens beside the event loop: a megabyte takes the tokenizer 0.4 s, in which every stream of the
router would stand still."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from serve_apps.api_errors import ApiError
from serve_apps.engines.protocol import Tokenizer

INLINE_CHARS = 1_000
"""A prompt up to here is counted where it is: 0.2 ms, about what a thread costs."""
WAITING_CHARS = 8_000_000
"""Text that may wait for its count, 3 to 6 s of a tokenizer's work. One prompt alone is never too long for it."""


class TokenCounter:
    """Counts long prompts in one thread, in their order. The ``tokenizers`` library holds no GIL while it works."""

    def __init__(self, tokenizer: Tokenizer, waiting_chars: int = WAITING_CHARS) -> None:
        self._tokenizer, self._most_chars, self._waiting_chars = tokenizer, waiting_chars, 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-counter")

    async def count(self, text: str) -> int:
        """Raises ApiError (429) where too much text waits already."""
        if len(text) <= INLINE_CHARS:
            return self._tokenizer.count_tokens(text)
        if self._waiting_chars and self._waiting_chars + len(text) > self._most_chars:
            message = f"{self._waiting_chars} characters of prompts wait to be counted already; send it again later"
            raise ApiError(429, message, "overloaded")
        self._waiting_chars += len(text)
        try:
            counting = asyncio.get_running_loop().run_in_executor(self._thread, self._tokenizer.count_tokens, text)
            return await counting
        finally:
            self._waiting_chars -= len(text)
