"""Side by side on one trace: wattray's policies and the static baseline, in virtual time."""

from collections.abc import Sequence

import numpy as np

from control_plane.baselines.single_pool import SinglePool
from control_plane.domain import Load, Request, Slo
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.arrival_log import Arrivals
from control_plane.serving.hosted_policy import HostedPolicy
from control_plane.serving.length_quantiles import lengths_for
from control_plane.serving.load_forecast import load_of
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import HandOver, Policy, Site
from control_plane.settings import Settings
from control_plane.simulation.serving_cluster import ClusterTimes, Simulated, SimulatedCluster
from control_plane.simulation.trace import Trace

KNOWN_S = 600.0
"""Of a trace's beginning that policies may know beforehand, as an operator knows yesterday."""
EXPECTED_OUTPUT_TOKENS = 200
"""What the hint for a warm start assumes: lengths of answers are not known yet."""


def hosted_policy(
    name: str, trace: Trace, settings: Settings, profile: MachineProfile, gpus: int, idle_gpu_w: float
) -> HostedPolicy:
    """The policy of this name at ``site_for`` the trace. Raises UnknownPolicyError and GpuBudgetError as
    ``make_policy`` does."""
    site = site_for(trace, settings, profile, gpus, idle_gpu_w)
    return hosted(make_policy(name, site), site)


def hosted(policy: Policy, site: Site) -> HostedPolicy:
    """A policy that was built for a site, in virtual time."""
    settings = site.settings
    lengths = lengths_for(settings)
    return HostedPolicy(policy, settings.forecast, site.gpus, site.first_load, settings.slo.slo(), lengths)


def site_for(trace: Trace, settings: Settings, profile: MachineProfile, gpus: int, idle_gpu_w: float) -> Site:
    """Where policies serve a trace: started warm for the mean load until the first replica that they ask for could be
    there, as `wattray up` is with an operator's hint (the static baseline knows the whole trace).

    ``idle_gpu_w`` is what a GPU that no replica holds is billed: a plan must be optimal at what is charged.
    """
    forecast = settings.forecast
    hint_s = max(60.0, min(trace.duration_s, settings.sharding.startup_s + 2 * forecast.bin_s * forecast.window_bins))
    first = trace.between(0.0, hint_s)
    pairs = [(tokens, EXPECTED_OUTPUT_TOKENS) for tokens in first.input_tokens.tolist()]
    hint = load_of(pairs, hint_s) if pairs else Load()
    known = trace.between(0.0, min(hint_s, KNOWN_S))
    inputs = known.input_tokens.astype(float)
    outputs = np.full(len(inputs), float(EXPECTED_OUTPUT_TOKENS))
    arrivals = Arrivals(known.arrival_ps / PS_PER_S, inputs, outputs)
    times = ClusterTimes()
    apart = settings.phases == "auto"
    hand_over = HandOver(times.kv_bytes_per_token, times.kv_link_bytes_per_s) if apart else None
    planning = profile.with_slo(settings.planning_slo())
    return Site(settings, planning, gpus, idle_gpu_w, hint, arrivals, hand_over)


def simulate_wattray(
    requests: Trace | Sequence[Request], settings: Settings, profile: MachineProfile, until_s: float | None = None
) -> Simulated:
    """wattray on a trace and on all the serving GPUs of the settings, idle ones billed. Phases together: the engines
    that run live hand nothing over."""
    settings = settings.model_copy(update={"phases": "together"})
    trace = requests if isinstance(requests, Trace) else Trace.of(requests)
    gpus = settings.serving_gpus
    fleet = hosted_policy("wattray", trace, settings, profile, gpus, profile.gpu.idle_w)
    startup_s = 0.0 if settings.serve.warm_start else settings.sharding.startup_s
    return SimulatedCluster(profile, gpus, fleet, startup_s).run(trace, until_s)


def simulate_single_pool(
    requests: Trace | Sequence[Request],
    profile: MachineProfile,
    gpus: int,
    slo: Slo,
    until_s: float | None = None,
    attainment: float = 0.99,
) -> tuple[int, Simulated]:
    """The fewest TP8 replicas at full clock that hold the SLO for ``attainment`` of this very trace, and their run.
    Where even the whole cluster does not, the whole cluster."""
    trace = requests if isinstance(requests, Trace) else Trace.of(requests)
    tp = max(profile.tps)
    most = gpus // tp
    if most < 1:
        raise ValueError(f"a single pool of TP{tp} needs {tp} GPUs; there are {gpus}")
    for replicas in range(1, most + 1):
        outcome = SimulatedCluster(profile, gpus, SinglePool(replicas, tp)).run(trace, until_s)
        if outcome.slo_attainment(slo) >= attainment or replicas == most:
            return replicas, outcome
    raise AssertionError("unreachable: the loop returns at the last size")
