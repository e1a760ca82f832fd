"""Hand-written stand-ins for what the router meets: replicas that follow a script, and a policy that takes notes."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from control_plane.domain import Load, PoolName, ReplicaId
from control_plane.hardware.profiles import DEFAULT_PROFILE, load_profile
from control_plane.serving.hosting import RouterHost
from control_plane.serving.length_quantiles import lengths_for
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import Needs, Policy, RoutedRequest, Site
from control_plane.serving.routing import Candidate, Route
from control_plane.settings import Settings
from serve_apps import running_replicas
from serve_apps.admission import Admission
from serve_apps.dispatch import Counts, Dispatcher
from serve_apps.engines.protocol import Chunk, GenerateRequest
from serve_apps.replica_directory import ReplicaDirectory, speeds
from serve_apps.router import Desk

SETTINGS = Settings()
PROFILE = load_profile(DEFAULT_PROFILE, SETTINGS.planning_slo())
POOL = PoolName("short-medium")
APP = "short-medium-tp8"

Script = Callable[[GenerateRequest], Iterable[Chunk | Exception | float]]
"""What a replica does with a request: sends chunks, waits so many seconds, raises."""


def answers(*words: str, reason: str = "stop") -> Script:
    def script(request: GenerateRequest) -> Iterable[Chunk | Exception | float]:
        for word in words[:-1]:
            yield Chunk(word, 1)
        yield Chunk(words[-1], 1, reason)

    return script


def does(*steps: Chunk | Exception | float) -> Script:
    return lambda request: steps


class ScriptedReplicas:
    """Implements ``dispatch.ReplicaCalls``: every replica follows its own script, and is remembered for what it got."""

    def __init__(self, **scripts: Script) -> None:
        self.scripts = scripts
        self.sent: list[tuple[str, str, GenerateRequest]] = []
        self.closed: list[str] = []
        running_replicas.update(APP, frozenset(ReplicaId(name) for name in scripts))

    async def stream(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.sent.append((app, str(replica_id), request))
        try:
            for step in self.scripts[str(replica_id)](request):
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Chunk):
                    yield step
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed.append(str(replica_id))


@dataclass(slots=True)
class Noted:
    """A meter that keeps what it is told."""

    ended: list[tuple[str, str, float | None]] = field(default_factory=list)
    retries: int = 0
    met: list[tuple[str, bool]] = field(default_factory=list)

    def request_ended(self, pool_name: str, outcome: str, ttft_s: float | None) -> None:
        self.ended.append((pool_name, outcome, ttft_s))

    def request_met(self, pool_name: str, met: bool) -> None:
        self.met.append((pool_name, met))

    def request_retried(self) -> None:
        self.retries += 1


def site_policy(settings: Settings = SETTINGS) -> Policy:
    return make_policy("wattray", Site(settings, PROFILE, 32, 70.0, Load()))


class TakingTurns:
    """A policy's router that chooses the replicas in turn, and notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Hashable, ...]] = []
        self.always_first = False
        self._next = 0

    needs = Needs()

    def router(self) -> "TakingTurns":
        return self

    def expected_tokens(self, input_tokens: int, max_tokens: int) -> float:
        return 7.0

    def route(self, now_s: float, request: RoutedRequest, candidates: Sequence[Candidate]) -> Route | None:
        if not candidates:
            return None
        chosen = candidates[self._next % len(candidates)]
        self._next += not self.always_first
        self.calls.append(("route", request.key, chosen.replica_id))
        return Route(chosen.pool, chosen.replica_id, False, 0.0)

    def first_token(self, key: Hashable, replica_id: ReplicaId) -> None:
        self.calls.append(("first_token", key, replica_id))

    def ended(self, key: Hashable, replica_id: ReplicaId, input_tokens: int, output_tokens: int) -> None:
        self.calls.append(("ended", key, replica_id, input_tokens, output_tokens))

    def dropped(self, key: Hashable, replica_id: ReplicaId) -> None:
        self.calls.append(("dropped", key, replica_id))

    def forget(self, alive: Iterable[ReplicaId]) -> None:
        self.calls.append(("forget", tuple(sorted(alive))))

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]


@dataclass(slots=True)
class RouterParts:
    """A router without Ray."""

    desk: Desk
    host: RouterHost
    policy: TakingTurns
    replicas: ScriptedReplicas
    meter: Noted

    @property
    def counts(self) -> Counts:
        return self.desk.counts


def router_of(replicas: ScriptedReplicas, settings: Settings = SETTINGS, no_replica_wait_s: float = 0.0) -> RouterParts:
    policy, meter = TakingTurns(), Noted()
    host = RouterHost(policy, lengths=lengths_for(settings))  # type: ignore[arg-type]
    directory = ReplicaDirectory(speeds(site_policy(settings), PROFILE))
    counts = Counts(meter)
    most_waiting = settings.serve.max_waiting_requests
    dispatcher = Dispatcher(
        host, directory, replicas, counts, no_replica_wait_s=no_replica_wait_s, most_waiting=most_waiting
    )
    admission = Admission.of(settings, PROFILE)
    desk = Desk(admission, dispatcher, directory, counts, settings.serve.max_body_bytes, settings.serve.engine)
    return RouterParts(desk, host, policy, replicas, meter)
