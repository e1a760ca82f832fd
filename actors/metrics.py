"""wattray's metrics on Ray's metrics endpoint, each with its help text and base unit; exported as ``ray_wattray_…``.

Gauges are made at first use: only a process that belongs to Ray may make one.
"""

from collections.abc import Mapping
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

from actors.messages import GpuReading, PoolStatus
from control_plane.domain import ReplicaState
from control_plane.ports import ClockEvent

HELP = {
    "wattray_profile_correction_ratio": "Measured over modelled, as plans take it, by phase (decode, power).",
    "wattray_profile_disagreement_ratio": "By how much the profile is off where that is more than it states, else 0.",
    "wattray_gpu_power_watts": "Power a GPU draws now.",
    "wattray_gpu_clock_hertz": "SM clock of a GPU now.",
    "wattray_gpu_clock_target_hertz": "Highest SM clock wattray allows a GPU now.",
    "wattray_gpu_clock_event_info": "1 while this holds a GPU below the clock it may take.",
    "wattray_gpu_lease_age_seconds": "Time since the lease on a GPU was last renewed; 0 where there is none.",
    "wattray_gpu_lease_lapses_total": "Leases that lapsed because their owner fell silent: the GPU went to full clock.",
    "wattray_cluster_gpus": "GPUs of the nodes that Ray knows alive, up to those of the settings.",
    "wattray_control_info": "1 for what wattray may do: act, or only recommend.",
    "wattray_gpu_energy_joules_total": "Energy a GPU has used since the agent started, idle included.",
    "wattray_pool_replicas": "Replicas of a pool that are ready.",
    "wattray_pool_gpu_budget": "GPUs a pool may hold.",
    "wattray_pool_load_requests_per_second": "Arrivals of a pool in the last seconds.",
    "wattray_decisions_total": "Actions taken by the control plane.",
    "wattray_requests_total": "Requests that ended at the router, by outcome.",
    "wattray_request_slo_total": "Requests that ended, by whether they met their limits; lost and shed ones did not.",
    "wattray_request_retries_total": "Requests sent to another replica because the first one was lost.",
    "wattray_request_ttft_seconds": "Time to first token as the router saw it.",
    "wattray_training_iteration_seconds": "Last training iteration of a job, in GPU time.",
    "wattray_training_iteration_planned_seconds": "Iteration time that the clock schedule in force was planned for.",
    "wattray_training_iterations_total": "Training iterations a job has done.",
    "wattray_training_energy_joules_total": "Energy the GPUs of a job used in its iterations, waiting included.",
    "wattray_training_energy_all_max_joules_total": "Energy the same iterations take with every clock at its highest.",
    "wattray_training_straggler_ratio": "Iteration time of a job's slowest pipeline over a healthy one's.",
}


@cache
def gauge(name: str, *tags: str) -> Gauge:
    return Gauge(name, description=HELP[name], tag_keys=tags)


@cache
def counter(name: str, *tags: str) -> Counter:
    return Counter(name, description=HELP[name], tag_keys=tags)


@cache
def ttft_histogram() -> Histogram:
    name = "wattray_request_ttft_seconds"
    return Histogram(name, description=HELP[name], boundaries=[0.05, 0.1, 0.25, 0.4, 1, 2, 5], tag_keys=("pool",))


def gpu(reading: GpuReading, spent_j: float) -> None:
    tags = {"uuid": reading.uuid}
    gauge("wattray_gpu_power_watts", "uuid").set(reading.power_w, tags)
    gauge("wattray_gpu_clock_hertz", "uuid").set(reading.freq_mhz * 1e6, tags)
    gauge("wattray_gpu_clock_target_hertz", "uuid").set(reading.locked_mhz * 1e6, tags)
    gauge("wattray_gpu_lease_age_seconds", "uuid").set(reading.lease_age_s or 0.0, tags)
    for event in ClockEvent:
        info = gauge("wattray_gpu_clock_event_info", "uuid", "event")
        info.set(1.0 if event in reading.events else 0.0, {**tags, "event": str(event)})
    if spent_j > 0:
        counter("wattray_gpu_energy_joules_total", "uuid").inc(spent_j, tags)


def lease_lapsed(uuid: str) -> None:
    counter("wattray_gpu_lease_lapses_total", "uuid").inc(1, {"uuid": uuid})


def cluster(gpus: int, control: str) -> None:
    gauge("wattray_cluster_gpus").set(gpus)
    gauge("wattray_control_info", "control").set(1.0, {"control": control})


def pool(status: PoolStatus) -> None:
    tags = {"pool": str(status.pool)}
    ready = sum(replica.state is ReplicaState.READY for replica in status.replicas)
    gauge("wattray_pool_replicas", "pool").set(ready, tags)
    gauge("wattray_pool_gpu_budget", "pool").set(status.gpu_budget, tags)
    gauge("wattray_pool_load_requests_per_second", "pool").set(status.load_rps, tags)


def correction(pool: str, ratios: Mapping[str, float], disagreement: float) -> None:
    for phase, ratio in ratios.items():
        gauge("wattray_profile_correction_ratio", "pool", "phase").set(ratio, {"pool": pool, "phase": phase})
    gauge("wattray_profile_disagreement_ratio", "pool").set(disagreement, {"pool": pool})


def decision(source: str) -> None:
    counter("wattray_decisions_total", "source").inc(1, {"source": source})


def request_ended(pool_name: str, outcome: str, ttft_s: float | None) -> None:
    counter("wattray_requests_total", "pool", "outcome").inc(1, {"pool": pool_name, "outcome": outcome})
    if ttft_s is not None:
        ttft_histogram().observe(ttft_s, {"pool": pool_name})


def request_met(pool_name: str, met: bool) -> None:
    counter("wattray_request_slo_total", "pool", "met").inc(1, {"pool": pool_name, "met": str(met).lower()})


def request_retried() -> None:
    counter("wattray_request_retries_total").inc(1)


def training_iteration(
    job: str, time_s: float, planned_s: float, energy_j: float, all_max_j: float, degree: float
) -> None:
    tags = {"job": job}
    gauge("wattray_training_iteration_seconds", "job").set(time_s, tags)
    gauge("wattray_training_iteration_planned_seconds", "job").set(planned_s, tags)
    gauge("wattray_training_straggler_ratio", "job").set(degree, tags)
    counter("wattray_training_iterations_total", "job").inc(1, tags)
    counter("wattray_training_energy_joules_total", "job").inc(energy_j, tags)
    counter("wattray_training_energy_all_max_joules_total", "job").inc(all_max_j, tags)
