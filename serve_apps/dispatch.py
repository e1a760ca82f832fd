"""The way of an admitted request: choose a replica, send it there, and again elsewhere while nothing was delivered.

The policy's account is told of every attempt; the counts hold every request once, by what became of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from control_plane.domain import PoolName, ReplicaId
from control_plane.serving.hosting import RouterHost
from control_plane.serving.length_quantiles import Requester
from control_plane.serving.policy import RoutedRequest
from control_plane.serving.routing import Candidate
from control_plane.settings import ServeSettings
from serve_apps.api_errors import AdmittedError, ApiError
from serve_apps.engines.protocol import Chunk, EngineError, EngineStoppedError, GenerateRequest, RequestRefusedError
from serve_apps.replica_directory import ReplicaDirectory
from serve_apps.usage_ledger import UsageLedger, Used

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A request whose replica is lost before anything was delivered is sent to this many replicas in all."""
NO_REPLICA_WAIT_S = 30.0
"""How long a request waits for a first replica before it is refused."""
NO_REPLICA_POLL_S = 0.1


class ReplicaLostError(RuntimeError):
    """The replica died, was scaled away or cannot be reached; another one may serve the request."""


class ReplicaCalls(Protocol):
    """Sends a request to one replica."""

    def stream(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Its chunks. Raises ReplicaLostError and EngineError; closing the iterator cancels the request there."""
        ...


@dataclass(slots=True)
class Account:
    """What a client is told of its request beside the answer, complete once that has ended."""

    expected_tokens: float = 0.0
    """Output tokens that the policy planned for."""
    tokens: int = 0
    energy_j: float | None = None
    """Its share of the replica's metered energy; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole generation."""

    text: str
    finish_reason: str
    account: Account


class Outcome(StrEnum):
    """What became of a request."""

    COMPLETED = "completed"
    FAILED = "failed"
    """It broke off after a part of the answer was delivered, or for a reason of the engine's or the router's own."""
    CANCELLED = "cancelled"
    """The client went away."""
    REFUSED = "refused"
    """An error of the client's; most are not admitted at all."""
    UNAVAILABLE = "unavailable"
    """No replica could serve it, and nothing was delivered."""


class Meter(Protocol):
    """Where counts are published; ``actors.metrics`` is one."""

    def request_ended(self, pool_name: str, outcome: str, ttft_s: float | None) -> None: ...
    def request_met(self, pool_name: str, met: bool) -> None: ...
    def request_retried(self) -> None: ...


class Counts:
    """Requests since the router started: every one that was admitted or refused, once, by what became of it."""

    def __init__(self, meter: Meter | None = None) -> None:
        self.accepted = self.spilled = self.retried = self.slo_met = self.slo_missed = 0
        self.ended = dict.fromkeys(Outcome, 0)
        self._meter = meter

    def end(self, outcome: Outcome, pool: PoolName | None = None, ttft_s: float | None = None) -> None:
        self.ended[outcome] += 1
        if self._meter is not None:
            self._meter.request_ended(str(pool or "none"), outcome, ttft_s)

    def slo(self, met: bool, pool: PoolName | None = None) -> None:
        """A request met its limits or missed them. One that was lost or shed missed them; one that its client broke off
        or had to change is not told here."""
        self.slo_met += met
        self.slo_missed += not met
        if self._meter is not None:
            self._meter.request_met(str(pool or "none"), met)

    def not_admitted(self, status: int) -> None:
        """The router answered a request with this status before it was admitted."""
        self.end(Outcome.REFUSED if status < 500 else Outcome.FAILED)

    def retry(self) -> None:
        self.retried += 1
        if self._meter is not None:
            self._meter.request_retried()

    def by_name(self) -> dict[str, int]:
        ended = {str(outcome): count for outcome, count in self.ended.items()}
        slo = {"slo_met": self.slo_met, "slo_missed": self.slo_missed}
        return {"accepted": self.accepted, **ended, "spilled": self.spilled, "retried": self.retried, **slo}


@dataclass(slots=True)
class _InFlight:
    """What is known of one admitted request until it ends."""

    request: GenerateRequest
    began_s: float
    account: Account
    pool: PoolName | None = None
    ttft_s: float | None = None
    mean_tbt_s: float = 0.0
    """Known once it has finished."""
    lost: frozenset[ReplicaId] = frozenset()
    """Replicas that failed it: not chosen again while there are others, though Serve may still list them."""
    finished: bool = False
    """The engine has ended the answer; what comes after is the client's business."""

    def in_time(self) -> bool:
        """Whether first token and mean time between tokens kept the request's limits."""
        request = self.request
        return (self.ttft_s or 0.0) <= request.ttft_limit_s and self.mean_tbt_s <= request.tbt_limit_s


class Dispatcher:
    """One per router process; its policy's account knows every request in flight."""

    def __init__(
        self,
        host: RouterHost,
        directory: ReplicaDirectory,
        calls: ReplicaCalls,
        counts: Counts,
        clock_s: Callable[[], float] = time.monotonic,
        no_replica_wait_s: float = NO_REPLICA_WAIT_S,
        ledger: UsageLedger | None = None,
        most_waiting: int = ServeSettings().max_waiting_requests,
    ) -> None:
        self._host, self._directory, self._calls = host, directory, calls
        self._clock_s, self._no_replica_wait_s = clock_s, no_replica_wait_s
        self._most_waiting, self._waiting = most_waiting, 0
        self.counts = counts
        self.ledger = ledger or UsageLedger()

    async def whole(self, request: GenerateRequest) -> Answer:
        """Nothing is delivered before the end, so a lost replica costs a new start. Raises AdmittedError."""
        with self._accounted(request, Account()) as flight:
            for attempt in range(1, ATTEMPTS + 1):
                pieces: list[str] = []
                reason = "length"
                try:
                    async with aclosing(self._attempt(flight)) as chunks:
                        async for chunk in chunks:
                            pieces.append(chunk.text)
                            reason = chunk.finish_reason or reason
                    return Answer("".join(pieces), reason, flight.account)
                except (ReplicaLostError, EngineStoppedError) as error:
                    self._again(attempt, error)
        raise RuntimeError("unreachable: the last attempt returns or raises")

    async def stream(self, request: GenerateRequest, account: Account | None = None) -> AsyncGenerator[Chunk, None]:
        """The request's chunks; ``account`` is filled in meanwhile. Until the first one a lost replica costs a new
        start; after it the stream ends with the error. Raises AdmittedError."""
        with self._accounted(request, account or Account()) as flight:
            for attempt in range(1, ATTEMPTS + 1):
                delivered = False
                try:
                    async with aclosing(self._attempt(flight)) as chunks:
                        async for chunk in chunks:
                            delivered = True
                            yield chunk
                    return
                except (ReplicaLostError, EngineStoppedError) as error:
                    if delivered:
                        raise
                    self._again(attempt, error)

    def _again(self, attempt: int, error: Exception) -> None:
        """Raises the error after the last attempt."""
        if attempt == ATTEMPTS:
            raise error
        log.warning("attempt %d: %s; the request goes to another replica", attempt, error)
        self.counts.retry()

    @contextmanager
    def _accounted(self, request: GenerateRequest, account: Account) -> Iterator[_InFlight]:
        """Count the request once it has ended, and turn what ended it into what the client is told. Raises ApiError
        where too many wait."""
        if self._waiting >= self._most_waiting:
            self.counts.slo(met=False)
            message = f"{self._waiting} requests wait for their first token already; send it again later"
            raise ApiError(429, message, "overloaded")
        self._waiting += 1
        self.counts.accepted += 1
        flight = _InFlight(request, self._clock_s(), account)
        outcome = Outcome.FAILED
        try:
            account.expected_tokens = self._host.admit(flight.began_s, _routed(request))
            yield flight
            outcome = Outcome.COMPLETED
        except AdmittedError:
            outcome = Outcome.UNAVAILABLE
            raise
        except (ReplicaLostError, EngineStoppedError) as error:
            outcome = Outcome.UNAVAILABLE if flight.ttft_s is None else Outcome.FAILED
            when = "before it answered" if flight.ttft_s is None else "in the middle of the answer"
            raise AdmittedError(503, f"the replica failed {when}: {error}", "replica_lost") from error
        except RequestRefusedError as error:
            outcome = Outcome.REFUSED
            raise AdmittedError(400, str(error), "engine_refused") from error
        except EngineError as error:
            raise AdmittedError(500, f"the engine failed: {error}", "engine_failed") from error
        except (asyncio.CancelledError, GeneratorExit):
            outcome = Outcome.COMPLETED if flight.finished else Outcome.CANCELLED
            raise
        finally:
            self._waiting -= flight.ttft_s is None
            self._host.gone(request.request_id)
            self.counts.end(outcome, flight.pool, flight.ttft_s)
            if outcome not in (Outcome.CANCELLED, Outcome.REFUSED):
                self.counts.slo(outcome is Outcome.COMPLETED and flight.in_time(), flight.pool)
            self.ledger.add(Used(request.tenant, request.input_tokens, account.tokens, account.energy_j))

    async def _attempt(self, flight: _InFlight) -> AsyncGenerator[Chunk, None]:
        request = flight.request
        app, replica_id = await self._choose(flight)
        waited_s = self._clock_s() - flight.began_s
        tokens, ended = 0, False
        try:
            async with aclosing(self._calls.stream(app, replica_id, replace(request, waited_s=waited_s))) as chunks:
                async for chunk in chunks:
                    if tokens == 0 and chunk.tokens > 0:
                        if flight.ttft_s is None:
                            flight.ttft_s = self._clock_s() - flight.began_s
                            self._waiting -= 1
                        ttft_s = None if chunk.whole else flight.ttft_s
                        self._host.first_token(request.request_id, replica_id, request.input_tokens, ttft_s)
                    tokens += chunk.tokens
                    flight.account.tokens = tokens
                    if chunk.finish_reason is not None:
                        ended = flight.finished = True
                        flight.account.energy_j = chunk.energy_j
                        if tokens > 1 and flight.ttft_s is not None:
                            since_first_s = self._clock_s() - flight.began_s - flight.ttft_s
                            flight.mean_tbt_s = since_first_s / (tokens - 1)
                        self._host.ended(request.request_id, replica_id, request.input_tokens, tokens)
                    yield chunk
            if not ended:
                raise ReplicaLostError(f"the stream of {replica_id} stopped after {tokens} tokens")
        finally:
            if not ended:
                flight.lost |= {replica_id}
                self._host.dropped(request.request_id, replica_id)

    async def _choose(self, flight: _InFlight) -> tuple[str, ReplicaId]:
        """The replica and its application. Raises AdmittedError where none came up in time."""
        routed = _routed(flight.request)
        until_s = self._clock_s() + self._no_replica_wait_s
        while True:
            now_s = self._clock_s()
            candidates: Sequence[Candidate] = self._directory.candidates()
            if flight.lost:
                candidates = [c for c in candidates if c.replica_id not in flight.lost] or candidates
            chosen = self._host.route(now_s, routed, candidates)
            if chosen is not None:
                flight.pool = chosen.pool
                self.counts.spilled += chosen.spilled
                return self._directory.app_of(chosen.replica_id), chosen.replica_id
            if now_s >= until_s:
                message = f"no replica came up within {self._no_replica_wait_s:.0f} s; see `wattray status`"
                raise AdmittedError(503, message, "no_replica")
            await asyncio.sleep(NO_REPLICA_POLL_S)


def _routed(request: GenerateRequest) -> RoutedRequest:
    who = Requester(request.tenant, request.app)
    limits, hint = request.own_limits, request.hinted_tokens
    return RoutedRequest(request.request_id, request.input_tokens, request.max_tokens, limits, who, hint)
