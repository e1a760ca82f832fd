"""One model replica as continuous batching with chunked prefill, in integer picoseconds.

The virtual-time simulator steps it by events and the live simulated engine by wall time: the model never asks
what time it is. A decoder gains one token every iteration, so nothing is touched per token: an entry remembers the
iteration in which it began to decode.

The batch. Requests are admitted first come, first served, when an iteration begins. An iteration carries one token of
every decoder and then prefill chunks, in order of admission, up to ``batch_tokens``. The iteration that ends a prefill
yields the request's first token; every later iteration yields one more, and the request leaves with its last.

The KV cache. An iteration writes the KV entries of the tokens that it processes. A token that was just sampled has no
entry yet: the next iteration processes it and writes one. A decoder of ``c`` tokens, prompt and generated, therefore
occupies ``c`` entries in the next iteration, its newest token's among them. A prompt occupies its whole length from
admission on. ``kv_used_tokens`` is the sum: what the next iteration occupies, with every newest token counted once.

* A request is admitted while there is room for its prompt and for the next token of every request in the batch,
  itself included: ``kv_used + prompt + requests + 1 <= kv_tokens``. So an iteration that admits anybody throws nobody
  out at its end. A request whose KV cache comes from another replica brings its first token along, which goes to the
  client on admission: its prompt counts one more.
* After an iteration, while ``kv_used > kv_tokens``, the newest decoder gives way. It frees all its entries and waits at
  the head of the queue; once admitted again it prefills its prompt and all that it had generated (as vLLM recomputes),
  which yields its next token. A prompt that is being prefilled keeps its place.
* A request is refused where its prompt and all its output exceed the cache (vLLM's ``max_model_len``). So a decoder
  that is alone always fits, and an empty replica admits any request that it accepted.
* A request that completes or is cancelled frees its entries at once.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.hardware.gpu_model import Activity

PS_PER_S = 10**12


class IterationTimes(Protocol):
    """Integer time tables of one tensor parallelism. An iteration lasts ``alpha_ps(clock)[tokens] + context_ps x
    (sum of the decoders' contexts) + attention_ps(clock) x units``. A context counts prompt and generated tokens. Every
    prefilled token adds as many units as it attends to: itself and the tokens before it."""

    @property
    def context_ps(self) -> int: ...
    def alpha_ps(self, freq_mhz: int) -> Sequence[int]:
        """Picoseconds by tokens in the iteration, from 0 to ``batch_tokens + batch_requests``."""
        ...

    def attention_ps(self, freq_mhz: int) -> int: ...
    def activity(self, tokens: int) -> Activity: ...


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """KV capacity in tokens, most requests in a batch, most tokens in an iteration (vLLM's
    ``max_num_batched_tokens``)."""

    kv_tokens: int
    batch_requests: int = 256
    batch_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Iteration:
    """One pass of the model over the batch."""

    duration_ps: int
    tokens: int
    prefill_tokens: int
    activity: Activity


@dataclass(frozen=True, slots=True)
class Progress:
    """What an iteration brought: who got a first token, who is complete, who lost its KV and starts over."""

    first_token: tuple[Hashable, ...] = ()
    finished: tuple[Hashable, ...] = ()
    preempted: tuple[Hashable, ...] = ()


@dataclass(slots=True, eq=False)
class _Entry:
    key: Hashable
    input_tokens: int
    output_tokens: int
    submitted_ps: int
    order: int
    generated: int = 0
    """Tokens generated before it last began to decode."""
    prefilled: int = 0
    decoding_since: int | None = None
    """The iteration count when it last began to decode; None while it does not."""
    first_token_sent: bool = False
    gone: bool = False
    kv_arrived: bool = False
    """Prefilled elsewhere: its KV cache and its first token are here, and the client gets that token on admission."""

    @property
    def prompt(self) -> int:
        """What must be prefilled: after a preemption the generated tokens are recomputed too."""
        return self.input_tokens + self.generated


class ReplicaModel:
    """State of one replica's batch. Call ``begin`` and, ``duration_ps`` later, ``complete``; submit and cancel
    whenever. Requests are admitted first come, first served; decoders go before prefill chunks."""

    def __init__(self, times: IterationTimes, limits: ReplicaLimits) -> None:
        self._times = times
        self.limits = limits
        self._waiting: deque[_Entry] = deque()
        self._prefilling: deque[_Entry] = deque()
        self._entries: dict[Hashable, _Entry] = {}
        self._finishing: list[tuple[int, int, _Entry]] = []
        self._iterations = 0
        self._decoding = 0
        self._decode_context = 0
        self._kv_reserved = 0
        self._chunks: list[tuple[_Entry, int]] | None = None
        self._order = 0
        self._gone_waiting = 0

    # what can be seen

    @property
    def waiting(self) -> int:
        return len(self._waiting) - self._gone_waiting

    @property
    def running(self) -> int:
        return len(self._entries) - self.waiting

    @property
    def kv_used_tokens(self) -> int:
        """KV entries that the batch occupies in the iteration under way or, between two, in the next one."""
        return self._kv_reserved + self._decode_context

    @property
    def busy(self) -> bool:
        return bool(self._entries)

    def oldest_wait_ps(self, now_ps: int) -> int:
        """How long the first in line for a first token has waited since it was submitted; 0 where nobody is."""
        for queue in (self._prefilling, self._waiting):
            for entry in queue:
                if not entry.gone and not entry.first_token_sent:
                    return now_ps - entry.submitted_ps
        return 0

    def generated(self, key: Hashable) -> int:
        """Tokens generated so far for a request that is here."""
        entry = self._entries[key]
        since = 0 if entry.decoding_since is None else self._iterations - entry.decoding_since
        return entry.generated + since

    def shares(self) -> tuple[tuple[Hashable, int], ...]:
        """Who has how many tokens in the iteration under way."""
        decoding = [(e.key, 1) for e in self._entries.values() if e.decoding_since is not None]
        return (*decoding, *((entry.key, chunk) for entry, chunk in self._chunks or ()))

    # what can be done

    def submit(
        self, key: Hashable, input_tokens: int, output_tokens: int, now_ps: int, kv_arrived: bool = False
    ) -> None:
        """Queue a request. ``kv_arrived``: another replica prefilled it and sent its KV cache and first token; it
        still has ``output_tokens - 1`` to generate. Raises ValueError where it could never run: no tokens, a key
        already here, or more tokens than the KV cache holds."""
        if input_tokens < 1 or output_tokens < 1:
            raise ValueError(f"request {key!r}: {input_tokens} input and {output_tokens} output tokens; need >= 1")
        if input_tokens + output_tokens > self.limits.kv_tokens:
            raise ValueError(
                f"request {key!r}: {input_tokens} + {output_tokens} tokens exceed the KV cache of "
                f"{self.limits.kv_tokens}"
            )
        if key in self._entries:
            raise ValueError(f"request {key!r} is here already")
        self._order += 1
        entry = _Entry(key, input_tokens, output_tokens, now_ps, self._order)
        if kv_arrived:
            if output_tokens < 2:
                raise ValueError(f"request {key!r} has nothing left to decode: its one token came with its prefill")
            entry.kv_arrived = True
        self._entries[key] = entry
        self._waiting.append(entry)

    def cancel(self, key: Hashable) -> bool:
        """Drop a request and free its KV; False where it is not here."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        entry.gone = True
        if entry.decoding_since is not None:
            self._leave_decoding(entry)
        elif entry in self._prefilling:
            self._prefilling.remove(entry)
            self._kv_reserved -= entry.prompt
        else:
            self._gone_waiting += 1
        return True

    def begin(self, freq_mhz: int) -> Iteration | None:
        """Compose the next iteration at this clock; None where there is nothing to do."""
        if self._chunks is not None:
            raise RuntimeError("an iteration is under way: complete it first")
        if not self._entries:
            self._waiting.clear()
            self._gone_waiting = 0
            return None
        self._admit()
        budget = max(0, self.limits.batch_tokens - self._decoding)
        chunks: list[tuple[_Entry, int]] = []
        attention_units = 0
        for entry in self._prefilling:
            if budget == 0:
                break
            chunk = min(budget, entry.prompt - entry.prefilled)
            attention_units += chunk * entry.prefilled + chunk * (chunk + 1) // 2
            budget -= chunk
            chunks.append((entry, chunk))
        prefill_tokens = sum(chunk for _, chunk in chunks)
        tokens = self._decoding + prefill_tokens
        self._chunks = chunks
        duration_ps = self._times.alpha_ps(freq_mhz)[tokens] + self._times.context_ps * self._decode_context
        if attention_units:
            duration_ps += self._times.attention_ps(freq_mhz) * attention_units
        return Iteration(duration_ps, tokens, prefill_tokens, self._times.activity(tokens))

    def complete(self) -> Progress:
        """End the iteration that ``begin`` composed."""
        chunks, self._chunks = self._chunks, None
        if chunks is None:
            raise RuntimeError("no iteration is under way")
        self._iterations += 1
        self._decode_context += self._decoding
        first: list[Hashable] = []
        finished: list[Hashable] = []
        while self._finishing and self._finishing[0][0] <= self._iterations:
            _, _, entry = heapq.heappop(self._finishing)
            if not entry.gone and entry.decoding_since is not None:
                finished.append(entry.key)
                self._leave_decoding(entry)
                del self._entries[entry.key]
        for entry, chunk in chunks:
            if entry.gone:
                continue
            entry.prefilled += chunk
            if entry.prefilled < entry.prompt:
                continue
            self._prefilling.remove(entry)
            self._kv_reserved -= entry.prompt
            if not entry.first_token_sent:
                entry.first_token_sent = True
                first.append(entry.key)
            self._enter_decoding(entry, finished)
        return Progress(tuple(first), tuple(finished), self._preempt_until_it_fits())

    # inside

    def _admit(self) -> None:
        while self._waiting:
            entry = self._waiting[0]
            if entry.gone:
                self._waiting.popleft()
                self._gone_waiting -= 1
                continue
            batch = self._decoding + len(self._prefilling)
            needed = entry.prompt + entry.kv_arrived + batch + 1
            if batch >= self.limits.batch_requests or self.kv_used_tokens + needed > self.limits.kv_tokens:
                return
            self._waiting.popleft()
            if entry.kv_arrived:
                entry.kv_arrived = False
                entry.first_token_sent = True
                self._enter_decoding(entry, [])
                continue
            entry.prefilled = 0
            self._kv_reserved += entry.prompt
            self._prefilling.append(entry)

    def _enter_decoding(self, entry: _Entry, finished: list[Hashable]) -> None:
        """The end of prefill yields one token; the rest take an iteration each."""
        remaining = entry.output_tokens - entry.generated - 1
        if remaining == 0:
            finished.append(entry.key)
            del self._entries[entry.key]
            return
        entry.generated += 1
        entry.decoding_since = self._iterations
        self._decoding += 1
        self._decode_context += entry.input_tokens + entry.generated
        heapq.heappush(self._finishing, (self._iterations + remaining, entry.order, entry))

    def _leave_decoding(self, entry: _Entry) -> None:
        if entry.decoding_since is None:
            raise RuntimeError(f"request {entry.key!r} is not decoding")
        entry.generated += self._iterations - entry.decoding_since
        entry.decoding_since = None
        self._decoding -= 1
        self._decode_context -= entry.input_tokens + entry.generated

    def _preempt_until_it_fits(self) -> tuple[Hashable, ...]:
        """While the next iteration would occupy more than the KV cache, the newest decoder loses its entries."""
        preempted: list[Hashable] = []
        while self.kv_used_tokens > self.limits.kv_tokens:
            decoding = (entry for entry in self._entries.values() if entry.decoding_since is not None)
            newest = max(decoding, key=lambda entry: entry.order)
            self._leave_decoding(newest)
            self._finishing = [item for item in self._finishing if item[2] is not newest]
            heapq.heapify(self._finishing)
            self._waiting.appendleft(newest)
            preempted.append(newest.key)
        return tuple(preempted)
