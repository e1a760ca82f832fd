"""A growing sequence of tokens as text: whole characters only, and nothing after a stop string."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

REPLACEMENT = "\ufffd"
"""What a decoder makes of bytes that are no character, or not yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """New text, how many tokens were read for it, and whether a stop string ended the answer."""

    text: str
    tokens: int
    stopped: bool = False


class TextStream:
    """The pieces together are the decoded sequence, up to the first stop string, which is left out.

    A character whose bytes are spread over tokens comes with its last one, and text that may be the beginning of a stop
    string waits for the next tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stop for stop in stops if stop)
        self._ids: list[int] = []
        self._context = self._told = 0
        """Tokens up to ``_told`` are text already; those from ``_context`` on are decoded again with what follows, for
        decoders that look at the token before."""
        self._held = ""

    def push(self, token_ids: Sequence[int], last: bool) -> Piece:
        """The text that these tokens add; ``last`` says that none follow."""
        if not self._stops:
            self._ids += token_ids
            return Piece(self._fresh(last), len(token_ids))
        for read, token_id in enumerate(token_ids, start=1):
            self._ids.append(token_id)
            self._held += self._fresh(last and read == len(token_ids))
            found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
            if found:
                return Piece(self._held[: min(found)], read, True)
        kept = 0 if last else max(_begun(self._held, stop) for stop in self._stops)
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return Piece(text, len(token_ids))

    def _fresh(self, last: bool) -> str:
        before = self._decode(self._ids[self._context : self._told])
        now = self._decode(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(REPLACEMENT) and not last):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return now[len(before) :]


def _begun(text: str, stop: str) -> int:
    """How long the longest end of ``text`` is that begins ``stop``."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
