"""Policies that users bring: ``module:Class``, or a name that an installed package registered in the entry-point group
``wattray.policies``. Whatever such a policy raises names the policy, the part and the moment."""

import importlib
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

from control_plane.actions import Step
from control_plane.domain import PoolName, Role
from control_plane.serving.policy import ClusterController, Governor, Needs, Policy, PoolController, Router, Site
from control_plane.serving.routing import Route
from control_plane.settings import PoolSettings

GROUP = "wattray.policies"
_PARTS = ("needs", "pools", "splits_phases", "takes_quickest", "router", "governor", "pool", "cluster")


class OwnPolicyError(ValueError):
    """A user's policy cannot be loaded, or failed; one line that names it."""


def own_policy_names() -> tuple[str, ...]:
    """Those that installed packages registered."""
    return tuple(sorted(entry_points(group=GROUP).names))


def own_policy(name: str) -> Callable[[Site], Policy] | None:
    """What builds the policy of this name for a site; None where the name is neither ``module:Class`` nor registered.
    Raises OwnPolicyError where it is, and cannot be loaded."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            build = getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise OwnPolicyError(f"policy {name}: {_told(error)}") from error
    else:
        found = [point for point in entry_points(group=GROUP) if point.name == name]
        if not found:
            return None
        try:
            build = found[0].load()
        except Exception as error:
            raise OwnPolicyError(f"policy {name} ({found[0].value}): {_told(error)}") from error
    if not callable(build):
        raise OwnPolicyError(f"policy {name}: {build!r:.60} is neither a class nor a function that takes a Site")
    return lambda site: _Guarded(name, build, site)


class _Guarded:
    """Implements ``Policy`` by a user's, checked."""

    def __init__(self, name: str, build: Callable[[Site], Any], site: Site) -> None:
        self._name = name
        try:
            self._policy = build(site)
            missing = [part for part in _PARTS if not hasattr(self._policy, part)]
            if not missing:
                self.needs = cast(Needs, self._policy.needs)
                self.pools = cast(Sequence[PoolSettings], self._policy.pools)
                self.splits_phases = bool(self._policy.splits_phases)
                self.takes_quickest = bool(self._policy.takes_quickest)
        except Exception as error:
            raise OwnPolicyError(f"policy {name}, being built for {site.gpus} GPUs: {_told(error)}") from error
        if missing:
            raise OwnPolicyError(
                f"policy {name} has no {', '.join(missing)}; control_plane.serving.policy describes them"
            )

    def router(self) -> Router:
        return cast(Router, self._part("router"))

    def governor(self, pool: PoolName, tp: int, role: Role) -> Governor | None:
        return cast(Governor | None, self._part("governor", pool, tp, role))

    def pool(self, pool: PoolName) -> PoolController:
        return cast(PoolController, self._part("pool", pool))

    def cluster(self) -> ClusterController:
        return cast(ClusterController, self._part("cluster"))

    def _part(self, part: str, *arguments: Any) -> Any:
        try:
            made = getattr(self._policy, part)(*arguments)
        except Exception as error:
            raise OwnPolicyError(f"policy {self._name}, building its {part}: {_told(error)}") from error
        return None if made is None else _GuardedPart(self._name, part, made)


class _GuardedPart:
    """A part whose errors say which policy, which method and when."""

    def __init__(self, policy: str, part: str, real: Any) -> None:
        self._policy, self._part, self._real = policy, part, real
        self._now_s = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found):
            return found

        def called(*arguments: Any) -> Any:
            self._now_s = _time_in(name, arguments, self._now_s)
            try:
                answer = found(*arguments)
            except Exception as error:
                raise OwnPolicyError(f"{self._where(name)}: {_told(error)}") from error
            expected = _ANSWERS.get(name)
            if expected is not None and not isinstance(answer, expected):
                kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in expected)
                raise OwnPolicyError(f"{self._where(name)} answered {answer!r:.60}; expected {kinds}")
            return answer

        self.__dict__[name] = called
        return called

    def _where(self, name: str) -> str:
        return f"policy {self._policy}, {self._part}.{name} at {self._now_s:.3f} s"


_ANSWERS: dict[str, tuple[type, ...]] = {"route": (Route, type(None)), "step": (Step,), "look": (int,)}
_TIME_AT = {"route": 0, "route_decode": 0, "look": 1}


def _time_in(name: str, arguments: Sequence[Any], before_s: float) -> float:
    if name == "step" and arguments:
        return float(arguments[0].now_s)
    at = _TIME_AT.get(name)
    return before_s if at is None or at >= len(arguments) else float(arguments[at])


def _told(error: BaseException) -> str:
    """The error's type and message, and the last line of the user's code that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
