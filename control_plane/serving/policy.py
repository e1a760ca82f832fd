"""What a serving policy is: up to four small parts, each hosted where the data it reads is.

====================  ==========================  =============================================  ====================
part                  hosted by                   asked                                          answers within
====================  ==========================  =============================================  ====================
``Router``            the router's process        ``route`` for every request                    microseconds
``Governor``          each replica, under lease   ``look`` every second and at every arrival     tens of microseconds
``PoolController``    a pool manager              ``step(PoolSnapshot)`` every few seconds       milliseconds
``ClusterController`` the cluster manager         ``step(ClusterSnapshot)`` every few minutes    milliseconds
====================  ==========================  =============================================  ====================

The live actors and the simulator host the same parts through the same wiring (``control_plane.serving.hosting``), so
a policy is written once. ``Policy`` says which parts there are and what they need to see; hosts collect only that.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from control_plane.actions import Step
from control_plane.domain import Load, PoolName, QueueView, ReplicaId, RequestSlo, Role
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.length_quantiles import ANYBODY, LengthForecast, Requester
from control_plane.serving.routing import Candidate, Route
from control_plane.serving.snapshots import ClusterSnapshot, PoolSnapshot
from control_plane.settings import PoolSettings, Settings


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy's parts want to see beyond the counts that every host collects. A field that is not asked for
    stays None in ``ReplicaView``, whether or not the host could see it."""

    kv_use: bool = False
    """``kv_used_ratio``."""
    queued_tokens: bool = False
    """``queued_tokens`` and ``tightest_slack_s``."""
    power: bool = False
    """``power_w``."""
    latencies: bool = False
    """``ttft_p99_s`` and ``tbt_p99_s`` over the host's last minute."""
    recent: bool = False
    """``ClusterSnapshot.recent``: the arrivals of the last hour."""
    forecast: bool = True
    """``PoolSnapshot.reactive`` and the forecasts."""
    request_slo: bool = False
    """``RoutedRequest.slo``: limits that the client set for this one request."""


class RoutedRequest(NamedTuple):
    """A request as the router may see it: never its true output length."""

    key: Hashable
    input_tokens: int
    max_tokens: int
    slo: RequestSlo | None = None
    who: Requester = ANYBODY
    hint_tokens: int | None = None
    """Output tokens that the client itself expects."""
    predicted: LengthForecast | None = None
    """Where `lengths: learned` is set: by the host, before the router is asked."""


class Router(Protocol):
    """Chooses a replica for every request, and hears how each went."""

    def expected_tokens(self, input_tokens: int, max_tokens: int) -> float:
        """Predicted output tokens; the load forecaster is told these."""
        ...

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        """Where the request goes, or None where nothing can take it now. ``candidates`` is the same object until a
        replica comes or goes. Where phases are apart these are prefill replicas."""
        ...

    def route_decode(
        self, now_s: float, key: Hashable, input_tokens: int, candidates: Sequence[Candidate]
    ) -> ReplicaId | None:
        """Where phases are apart: which decode replica takes over after the prefill; None: none can yet."""
        ...

    def first_token(self, key: Hashable, replica_id: ReplicaId) -> None: ...
    def ended(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        """The request completed."""
        ...

    def dropped(self, key: Hashable, replica_id: ReplicaId) -> None:
        """The request failed, was cancelled or must be routed again: nothing is learnt from it."""
        ...

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        """These replicas run now; accounts of others may go."""
        ...


class Governor(Protocol):
    """Moves the clock of one replica, inside the replica."""

    def look(self, queue: QueueView, now_s: float) -> int:
        """The highest clock the replica's GPUs may take now, in MHz."""
        ...


@runtime_checkable
class HearingGovernor(Governor, Protocol):
    """A governor that is told of its replica's first tokens."""

    def first_token(self, ttft_s: float, ttft_limit_s: float) -> None: ...


class PoolController(Protocol):
    """One pool's replicas and, where no governor does it, their clocks."""

    def step(self, seen: PoolSnapshot) -> Step: ...
    def plan(self) -> str:
        """What it is heading for, for people: "2 x TP4@1500", or "none yet"."""
        ...


class ClusterController(Protocol):
    """GPUs per pool."""

    def step(self, seen: ClusterSnapshot) -> Step: ...


@dataclass(frozen=True, slots=True)
class HandOver:
    """What it takes to send a prompt's KV cache from a prefill to a decode replica."""

    bytes_per_token: float
    link_bytes_per_s: float
    """Of one replica, to one on another node."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a policy is built for."""

    settings: Settings
    profile: MachineProfile
    """The machine with the limits that plans must hold."""
    gpus: int
    idle_gpu_w: float
    """What a GPU that no replica holds is billed."""
    first_load: Load
    """What the operator said to be ready for at once."""
    first_arrivals: Arrivals = field(default_factory=Arrivals.none)
    """Recorded arrivals to be ready for at once, from time 0 on."""
    hand_over: HandOver | None = None
    """None where engines cannot hand a prefilled request over."""


class GpuBudgetError(ValueError):
    """There are too few GPUs for the policy; the message says the least that works."""


class NoHandOverError(ValueError):
    """The policy needs engines that hand KV caches over, and these do not."""


class Policy(Protocol):
    """Builds the parts of one policy for one site. Each part is built in the process that hosts it."""

    @property
    def needs(self) -> Needs: ...
    @property
    def pools(self) -> Sequence[PoolSettings]: ...
    @property
    def splits_phases(self) -> bool:
        """Prefill and decode run on different replicas."""
        ...

    @property
    def takes_quickest(self) -> bool:
        """Its router does nothing but take the candidate with the least ``RouterLedger.expected_ttft_s`` (of equal
        ones the least id) and learns nothing: a simulator may choose for it."""
        ...

    def router(self) -> Router: ...
    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        """None: the pool's controller sets the clocks."""
        ...

    def pool(self, pool: PoolName) -> PoolController: ...
    def cluster(self) -> ClusterController: ...
