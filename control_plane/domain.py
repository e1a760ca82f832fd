"""The values everything speaks in: requests and their nine types, SLOs, shapes, replicas, snapshots.

Request types and SLOs are DynamoLLM's (HPCA'25, section III and Table II).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Self

ReplicaId = NewType("ReplicaId", str)
PoolName = NewType("PoolName", str)
GpuId = NewType("GpuId", str)
NodeId = NewType("NodeId", str)

MAX_CLASSED_INPUT_TOKENS = 8192
"""The papers class inputs up to here; longer ones are classed long too."""


MEDIUM_FROM_TOKENS, LONG_FROM_TOKENS = 256, 1024
"""Where input classes begin."""


class InputClass(StrEnum):
    """Input lengths: short < 256 tokens, medium < 1024, long otherwise."""

    SHORT = "S"
    MEDIUM = "M"
    LONG = "L"

    @classmethod
    def of(cls, input_tokens: int) -> "InputClass":
        if input_tokens < MEDIUM_FROM_TOKENS:
            return cls.SHORT
        return cls.MEDIUM if input_tokens < LONG_FROM_TOKENS else cls.LONG


class OutputClass(StrEnum):
    """Output lengths: short < 100 tokens, medium < 350, long otherwise."""

    SHORT = "S"
    MEDIUM = "M"
    LONG = "L"

    @classmethod
    def of(cls, output_tokens: int) -> "OutputClass":
        if output_tokens < 100:
            return cls.SHORT
        return cls.MEDIUM if output_tokens < 350 else cls.LONG


@dataclass(frozen=True, slots=True)
class RequestType:
    """One of the nine input x output length types, SS … LL."""

    input: InputClass
    output: OutputClass

    def __str__(self) -> str:
        return f"{self.input.value}{self.output.value}"

    @classmethod
    def parse(cls, text: str) -> "RequestType":
        """``RequestType.parse("SM")``; raises ValueError for anything but S, M, L twice."""
        if len(text) != 2 or any(letter not in "SML" for letter in text):
            raise ValueError(f"request type {text!r} is not one of {[str(t) for t in REQUEST_TYPES]}")
        return cls(InputClass(text[0]), OutputClass(text[1]))

    @classmethod
    def of(cls, input_tokens: int, output_tokens: int) -> "RequestType":
        return cls(InputClass.of(input_tokens), OutputClass.of(output_tokens))


REQUEST_TYPES = tuple(RequestType(i, o) for i in InputClass for o in OutputClass)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. ``output_tokens`` is the truth, which no policy may read."""

    request_id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int

    @property
    def type(self) -> RequestType:
        return RequestType.of(self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Slo:
    """P99 limits: TTFT per input class, mean TBT for all; five times the isolated latency in the paper."""

    ttft_short_s: float = 0.250
    ttft_medium_s: float = 0.400
    ttft_long_s: float = 2.000
    tbt_s: float = 0.100

    def ttft_s(self, input_class: InputClass) -> float:
        match input_class:
            case InputClass.SHORT:
                return self.ttft_short_s
            case InputClass.MEDIUM:
                return self.ttft_medium_s
            case InputClass.LONG:
                return self.ttft_long_s

    def met(self, input_tokens: int, ttft_s: float, mean_tbt_s: float) -> bool:
        """A request meets its SLO when its TTFT and its mean TBT are both within their limits."""
        return ttft_s <= self.ttft_s(InputClass.of(input_tokens)) and mean_tbt_s <= self.tbt_s


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """Limits that a client set for one request; None where the class's limit holds."""

    ttft_s: float | None = None
    tbt_s: float | None = None


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What a replica runs as: tensor parallelism and GPU clock."""

    tp: int
    freq_mhz: int

    def __str__(self) -> str:
        return f"TP{self.tp}@{self.freq_mhz}"


@dataclass(frozen=True, slots=True)
class ClassLoad:
    """Arrivals of one input class: rate and mean lengths in tokens."""

    rps: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def __add__(self, other: Self) -> "ClassLoad":
        rps = self.rps + other.rps
        if rps == 0:
            return ClassLoad()
        return ClassLoad(
            rps,
            (self.rps * self.input_tokens + other.rps * other.input_tokens) / rps,
            (self.rps * self.output_tokens + other.rps * other.output_tokens) / rps,
        )

    def scaled(self, factor: float) -> "ClassLoad":
        return ClassLoad(self.rps * factor, self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """A mix of arrivals, by input class."""

    by_class: Mapping[InputClass, ClassLoad] = field(default_factory=dict)

    @property
    def total(self) -> ClassLoad:
        total = ClassLoad()
        for part in self.by_class.values():
            total = total + part
        return total

    @property
    def rps(self) -> float:
        return sum(part.rps for part in self.by_class.values())

    def scaled(self, factor: float) -> "Load":
        return Load({name: part.scaled(factor) for name, part in self.by_class.items()})

    def __add__(self, other: "Load") -> "Load":
        names = [name for name in InputClass if name in self.by_class or name in other.by_class]
        nothing = ClassLoad()
        return Load({n: self.by_class.get(n, nothing) + other.by_class.get(n, nothing) for n in names})

    def at_least(self, other: "Load") -> "Load":
        """Class by class the heavier of the two."""
        merged = dict(self.by_class)
        for name, part in other.by_class.items():
            if name not in merged or merged[name].rps < part.rps:
                merged[name] = part
        return Load(merged)

    def only(self, classes: Iterable[InputClass]) -> "Load":
        wanted = frozenset(classes)
        return Load({name: part for name, part in self.by_class.items() if name in wanted})


class Role(StrEnum):
    """Which part of a request a replica does."""

    COMBINED = "combined"
    PREFILL = "prefill"
    DECODE = "decode"


class ReplicaState(StrEnum):
    """Life of a replica; ``MAY_FOLLOW`` says who may follow whom."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


MAY_FOLLOW: Mapping[ReplicaState, frozenset[ReplicaState]] = {
    ReplicaState.STARTING: frozenset({ReplicaState.READY, ReplicaState.STOPPED}),
    ReplicaState.READY: frozenset({ReplicaState.DRAINING, ReplicaState.STOPPED}),
    ReplicaState.DRAINING: frozenset({ReplicaState.READY, ReplicaState.STOPPED}),
    ReplicaState.STOPPED: frozenset(),
}


def advance(state: ReplicaState, to: ReplicaState) -> ReplicaState:
    """The next state; raises ValueError for a step that no replica can take."""
    if to not in MAY_FOLLOW[state]:
        raise ValueError(f"a replica cannot go from {state} to {to}")
    return to


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """What is seen of one replica now. ``freq_mhz`` is the clock that was observed, never the one that was asked for.

    The fields from ``kv_used_ratio`` on are None unless the policy's ``Needs`` ask for them and the host can see them.
    """

    replica_id: ReplicaId
    tp: int
    freq_mhz: int
    state: ReplicaState
    waiting: int = 0
    running: int = 0
    oldest_wait_s: float = 0.0
    role: Role = Role.COMBINED
    kv_used_ratio: float | None = None
    """Share of the KV cache that is in use, in [0, 1]."""
    queued_tokens: int | None = None
    """Prompt tokens that wait to be prefilled."""
    tightest_slack_s: float | None = None
    """Time left until the first TTFT limit among the waiting requests; negative where one has passed."""
    power_w: float | None = None
    """Observed power of all the replica's GPUs together."""
    ttft_p99_s: float | None = None
    tbt_p99_s: float | None = None

    @property
    def counts(self) -> bool:
        """It serves or is about to: a plan counts on it. One that drains or has stopped does not."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)


class IdleGpus(StrEnum):
    """What GPUs cost that no replica holds."""

    RELEASED = "released"
    CHARGED = "charged"


@dataclass(frozen=True, slots=True)
class QueuedPrompt:
    """A request that waits for its first token, as the replica's queue holds it."""

    arrival_s: float
    input_tokens: int
    left_tokens: int
    """Prompt tokens that are not prefilled yet."""
    ttft_limit_s: float


@dataclass(frozen=True, slots=True)
class QueueView:
    """All that a governor may look at: its own replica's queue now, waiting requests in the order of the queue."""

    tp: int
    role: Role
    freq_mhz: int
    queued: tuple[QueuedPrompt, ...]
    decoding: int
    context_tokens: int
    """Sum of the contexts of the requests that are decoding."""
    kv_used_tokens: int
    kv_tokens: int
