"""The policies one can simulate, by name, and what each needs to start."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from control_plane.hardware.machine_profile import MachineProfile
from control_plane.settings import Settings
from control_plane.simulation.fleet import Fleet
from control_plane.simulation.trace import Trace
from control_plane.simulation.what_if import wattray_fleet


class UnknownNameError(ValueError):
    """A policy or profile that does not exist; the message lists those that do."""


class GpuBudgetError(ValueError):
    """Too few GPUs; the message says the least that works."""


SINGLE_POOL = "single-pool"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a policy is given to run: a machine, a GPU budget, settings; the trace only for its first minute."""

    profile: MachineProfile
    gpus: int
    settings: Settings
    trace: Trace
    idle_gpu_w: float
    """What a GPU that no replica holds is billed."""


def _wattray(cluster: Cluster) -> Fleet:
    least = min(cluster.profile.tps) * len(cluster.settings.pools)
    if cluster.gpus < least:
        raise GpuBudgetError(
            f"{cluster.gpus} GPUs are too few for wattray's {len(cluster.settings.pools)} pools; at least {least} work"
        )
    return wattray_fleet(cluster.trace, cluster.settings, cluster.profile, cluster.gpus, cluster.idle_gpu_w)


POLICIES: Mapping[str, Callable[[Cluster], Fleet]] = {"wattray": _wattray}
"""Beside these there is ``single-pool``, the baseline that all are compared with: it is sized by search."""


def policy_names() -> tuple[str, ...]:
    return (*POLICIES, SINGLE_POOL)


def check_policy_names(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in policy_names():
            raise UnknownNameError(unknown_name("policy", name, policy_names()))
    if not names:
        raise UnknownNameError(f"no policy named; there are {', '.join(policy_names())}")


def unknown_name(what: str, name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; there are {', '.join(known)}"
