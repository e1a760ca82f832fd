"""What a replica needs of an inference engine. Parallelism and clocks belong to the controller, not to the engine."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from control_plane.domain import QueueView, RequestSlo


class EngineError(RuntimeError):
    """The engine cannot take or finish a request; the message says why."""


class RequestRefusedError(EngineError):
    """This request can never run on this engine: the client must change it."""


class EngineStoppedError(EngineError):
    """The engine is not running, or stopped under the request: another replica may serve it."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen, in OpenAI's terms; None leaves it to the engine."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation of at most ``max_tokens`` tokens.

    ``token_ids`` is the prompt where the client sent it as tokens; otherwise it is in ``prompt``. ``ttft_limit_s`` is
    the time the first token may take, counted from ``waited_s`` seconds before the engine gets the request.
    ``tbt_limit_s`` is what its mean time between tokens may be; both limits are the client's own where it sent some.
    ``tenant`` is who pays, ``app`` what of
    theirs asks, ``hinted_tokens`` how long an answer they expect. ``extensions`` are fields of the request's body that
    only the installed engine knows.
    """

    request_id: str
    prompt: str
    input_tokens: int
    max_tokens: int
    token_ids: tuple[int, ...] | None = None
    sampling: SamplingParameters = SamplingParameters()
    ttft_limit_s: float = float("inf")
    waited_s: float = 0.0
    tbt_limit_s: float = float("inf")
    own_limits: RequestSlo | None = None
    """What the client itself asked for, where it did."""
    tenant: str = ""
    app: str = ""
    hinted_tokens: int | None = None
    extensions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a stream; the last chunk says why it is the last ("stop" or "length"). There the replica adds what
    the request used, where its GPUs can be read; an engine leaves that alone."""

    text: str
    tokens: int
    finish_reason: str | None = None
    energy_j: float | None = None
    whole: bool = False
    """It is a whole answer at once: when its first token was there is not known."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's queue now. ``tightest_slack_s`` is the time left until the first TTFT limit among the requests that
    wait for their first token: negative where one has passed, None where none waits."""

    waiting: int = 0
    running: int = 0
    oldest_wait_s: float = 0.0
    kv_used_ratio: float = 0.0
    queued_tokens: int = 0
    tightest_slack_s: float | None = None


class Tokenizer(Protocol):
    """The model's tokenizer; the router counts with it too."""

    def count_tokens(self, text: str) -> int:
        """At least 1: an empty prompt still begins a sequence."""
        ...

    def encode(self, text: str) -> list[int]: ...


class Engine(Protocol):
    """One model on its GPUs. Built cheaply; ``load`` makes it ready to generate."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    async def load(self) -> None:
        """Put the model on the GPUs; returns when requests are taken. Raises EngineError where that fails."""
        ...

    def alive(self) -> bool:
        """Whether requests are taken now: loaded, and neither stopped nor failed."""
        ...

    def failure(self) -> BaseException | None:
        """What ended the engine's own loop; None while nothing did."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Stream a generation; closing the iterator cancels it. Raises RequestRefusedError for one that cannot run
        here and EngineStoppedError where the engine is not running or stops under it."""
        ...

    def cancel(self, request_id: str) -> bool:
        """End a generation and free its KV cache; its stream raises EngineError. False where it is not here."""
        ...

    def stats(self) -> EngineStats: ...
    def queue(self, freq_mhz: int) -> QueueView:
        """What a governor looks at; ``freq_mhz`` is the clock that was observed. Times are ``time.monotonic()``."""
        ...

    async def drain(self, deadline_s: float) -> bool:
        """Take no more requests and wait this long for those that are here; whether none is left."""
        ...

    async def shutdown(self) -> None:
        """Stop and give the GPUs back; open streams end with EngineStoppedError."""
        ...


@dataclass(frozen=True, slots=True)
class Handover:
    """A prefilled request on its way to a decode replica: its first token, and what the receiving engine of the same
    kind needs to continue (a connector's parameters)."""

    first: Chunk
    parameters: Mapping[str, Any]


@runtime_checkable
class KvHandover(Protocol):
    """What an engine can do beside ``Engine`` where prefill and decode run on different replicas. An engine without
    these methods serves combined replicas only."""

    async def prefill(self, request: GenerateRequest) -> Handover:
        """Compute the prompt's KV cache and the first token. Raises as ``generate`` does."""
        ...

    def decode(self, request: GenerateRequest, handover: Handover) -> AsyncGenerator[Chunk, None]:
        """The tokens after the first one, where there are more: not for a first chunk that has a finish reason."""
        ...
