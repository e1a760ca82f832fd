"""Side by side on one trace: wattray's policies and the static baseline, in virtual time."""

from collections.abc import Sequence

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import Request, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.serving.fleet import ServingFleet, load_of
from control_plane.settings import Settings
from control_plane.simulation.serving_cluster import Simulated, SimulatedCluster


def simulate_wattray(
    trace: Sequence[Request], settings: Settings, profile: MachineProfile, until_s: float | None = None
) -> Simulated:
    """wattray on a trace: started warm for the load of its first minute, as `wattray up` with that hint is."""
    first = [r for r in trace if r.arrival_s < 60.0]
    fleet = ServingFleet(
        settings,
        profile,
        settings.gpu.count,
        profile.gpu.idle_w,
        profile.gpu.context_w,
        load_of([(r.input_tokens, 200) for r in first], 60.0) if first else None,
    )
    startup_s = 0.0 if settings.serve.warm_start else settings.sharding.startup_s
    return SimulatedCluster(profile, settings.gpu.count, fleet, startup_s).run(trace, until_s)


def simulate_single_pool(
    trace: Sequence[Request],
    profile: MachineProfile,
    gpus: int,
    slo: Slo,
    until_s: float | None = None,
    attainment: float = 0.99,
) -> tuple[int, Simulated]:
    """The fewest TP8 replicas at full clock that hold the SLO for ``attainment`` of this very trace, and their run.
    Where even the whole cluster does not, the whole cluster."""
    tp = max(profile.tps)
    most = gpus // tp
    if most < 1:
        raise ValueError(f"a single pool of TP{tp} needs {tp} GPUs; there are {gpus}")
    for replicas in range(1, most + 1):
        outcome = SimulatedCluster(profile, gpus, SinglePool(replicas, tp)).run(trace, until_s)
        if outcome.slo_attainment(slo) >= attainment or replicas == most:
            return replicas, outcome
    raise AssertionError("unreachable: the loop returns at the last size")
