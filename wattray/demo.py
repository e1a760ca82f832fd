"""`wattray demo`: the control plane before real HTTP traffic on a simulated node, with a scoreboard at the end."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors import runtime
from actors.messages import ControlPlaneStatus, Decision
from control_plane.domain import Load, ReplicaState, Request
from control_plane.serving.load_forecast import load_of
from control_plane.settings import Settings, parse_settings
from control_plane.simulation.traces import demo_shape, synthetic_conversation, window
from control_plane.simulation.what_if import simulate_single_pool, simulate_wattray
from train_jobs.background import TrainingProcess, start_training
from train_jobs.job import Job, job_lasting
from train_jobs.training_result import TrainingResult
from wattray import lifecycle, run_folder
from wattray.advise import advice_json, advice_told
from wattray.errors import WattrayError
from wattray.load_generator import Endpoint, Progress, Sent, replay
from wattray.output_files import check_folder, json_text, write_text
from wattray.ray_head import Ports
from wattray.report.moments import Moment
from wattray.running import Running
from wattray.take_down import not_interrupted, take_down
from wattray.trace_files import TraceRequest, load_trace

DEMO_SETTINGS: dict[str, Any] = {
    "cadence": {"cluster_s": 20.0, "pool_s": 10.0, "frequency_s": 2.0},
    "sharding": {"scale_down_hold_s": 20.0, "startup_s": 5.0, "headroom_ratio": 0.2},
    "forecast": {"bin_s": 5.0, "window_bins": 4, "quantile_z": 1.0, "peak_hold_s": 0.0},
    "frequency": {"headroom_ratio": 0.25, "urgent_wait_ratio": 0.3},
    "serve": {"overhead_s": 0.08, "stream_interval_s": 0.5},
    "profile_correction": False,
}
"""A day's decisions in two minutes: the cadences are shortened with it, and the allowance for noise is smaller because
windows of seconds are noisy themselves. Two cores that also run Ray, the client, a training job and the GPUs add up to
80 ms to a first token where a server adds 30, and a stream's tokens travel every half second: each step costs 3 ms. Its
engine is the profile itself: whatever differs is this machine's noise, which no profile is to learn."""

EXPECTED_OUTPUT_TOKENS = 200
LOOK_EVERY_S = 2.0
TRAINING_START_S, TRAINING_END_S = 90.0, 90.0
"""Patience with the training job: to its first iteration, and from the trace's end to its own."""


@dataclass(frozen=True, slots=True)
class Played:
    """Everything a replay left behind."""

    sent: Sequence[Sent]
    moments: Sequence[Moment]
    decisions: Sequence[Decision]
    began_s: float
    """Seconds since the epoch."""
    lasted_s: float
    counters_j: dict[str, float]
    """Energy each serving GPU's own counter gained."""
    training: TrainingResult | None
    status: ControlPlaneStatus
    """When the last request was answered."""


def demo_settings(overrides: dict[str, Any], source: str) -> Settings:
    """The demo's settings with a user's on top."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in DEMO_SETTINGS.items()}
    for key, value in overrides.items():
        merged[key] = {**merged[key], **value} if key in merged and isinstance(value, dict) else value
    return parse_settings(merged, source)


def demo_trace(wanted: TraceRequest | None, from_s: float, duration_s: float, seed: int) -> tuple[Request, ...]:
    """A slice of the user's trace, or of the embedded generator; raises TraceError or WattrayError."""
    if wanted is None:
        return synthetic_conversation(duration_s, seed, shape=demo_shape)
    trace = window(load_trace(wanted, []).requests(), from_s, duration_s)
    if not trace:
        raise WattrayError(
            f"--trace {wanted.source}: no request arrives between {from_s:.0f} and {from_s + duration_s:.0f} s"
        )
    return trace


def first_load(trace: Sequence[Request]) -> Load:
    """What the trace's first half minute brings, which `up` is told to be ready for (output lengths are guessed)."""
    first = [r for r in trace if r.arrival_s < 30.0] or list(trace[:1])
    return load_of([(r.input_tokens, EXPECTED_OUTPUT_TOKENS) for r in first], 30.0)


def run_demo(
    settings: Settings,
    ports: Ports,
    trace: Sequence[Request],
    out: Path,
    say: Callable[[str], None],
    watch: Callable[[Progress, Moment | None], None],
) -> dict[str, Any]:
    """Bring everything up, replay, take everything down, write the reports; returns what report.json holds."""
    check_folder(out, "--out")
    running = lifecycle.up(settings, ports, first_load(trace), address=None, say=say, own_head=True)
    training = None
    try:
        if settings.training.gpus > 0:
            say("starting a pipeline-parallel training job beside it")
            folder = run_folder.path(running.run_dir or "") / "training"
            training = start_training(demo_job(trace), running.address, folder)
            _wait_until_it_trains(training)
        say(f"replaying {len(trace)} requests over {trace[-1].arrival_s:.0f} s at {running.router_url}")
        played = asyncio.run(_play(settings, running, trace, training, say, watch))
    finally:
        with not_interrupted():
            say("taking everything down")
            if training is not None:
                training.stop()
            take_down(running, say)
    say("simulating the static baseline on the same requests")
    return write_reports(settings, trace, played, out)


def demo_job(trace: Sequence[Request]) -> Job:
    """The training half: most of the trace's time, with a straggler in its middle third."""
    return job_lasting(0.8 * trace[-1].arrival_s, name="demo", compare_losses=True)


def _wait_until_it_trains(training: TrainingProcess) -> None:
    """Until the job has measured itself and registered: torch's start-up would disturb the first requests."""
    planner = runtime.actor(runtime.PERSEUS_PLANNER)
    deadline_s = time.monotonic() + TRAINING_START_S
    while not ray.get(planner.jobs.remote(), timeout=30):
        if training.process.poll() is not None or time.monotonic() > deadline_s:
            training.result(timeout_s=1.0)
            raise WattrayError(f"the training job did not register within {TRAINING_START_S:.0f} s")
        time.sleep(0.5)


async def _play(
    settings: Settings,
    running: Running,
    trace: Sequence[Request],
    training: TrainingProcess | None,
    say: Callable[[str], None],
    watch: Callable[[Progress, Moment | None], None],
) -> Played:
    manager = runtime.actor(runtime.CLUSTER_MANAGER)
    moments: list[Moment] = []
    progress = Progress(len(trace))
    site = await runtime.actor(runtime.PERSEUS_PLANNER).site.remote()
    before = await _counters()
    began_s, began_mono_s = time.time(), time.monotonic()

    def changed(now: Progress) -> None:
        nonlocal progress
        progress = now
        watch(now, moments[-1] if moments else None)

    async def look_forever() -> None:
        while True:
            try:
                status: ControlPlaneStatus = await manager.status.remote()
                moments.append(moment_of(status, time.monotonic() - began_mono_s, site.gpu_uuids))
            except ray.exceptions.RayError:
                # A control actor is being restarted: the plots have a gap, the requests have none.
                pass
            watch(progress, moments[-1] if moments else None)
            await asyncio.sleep(LOOK_EVERY_S)

    looking = asyncio.create_task(look_forever())
    try:
        sent = await replay(Endpoint(running.router_url, settings.serve.model_name), trace, changed)
    finally:
        looking.cancel()
    lasted_s = time.monotonic() - began_mono_s
    after = await _counters()
    decisions: tuple[Decision, ...] = await manager.explain.remote(1000)
    last: ControlPlaneStatus = await manager.status.remote()
    counters_j = {uuid: after[uuid] - before[uuid] for uuid in after if uuid not in site.gpu_uuids}
    result = None
    if training is not None:
        say("waiting for the training job to end")
        result = await asyncio.to_thread(training.result, TRAINING_END_S)
    return Played(sent, moments, decisions, began_s, lasted_s, counters_j, result, last)


async def _counters() -> dict[str, float]:
    answers = await asyncio.gather(*(runtime.actor(name).readings.remote() for name in runtime.agent_names()))
    return {reading.uuid: reading.energy_j for answer in answers for reading in answer}


def moment_of(status: ControlPlaneStatus, at_s: float, training_gpus: Collection[str]) -> Moment:
    """One look at the serving half."""
    serving = [gpu for gpu in status.gpus if gpu.uuid not in training_gpus]
    ready: dict[str, int] = {}
    clocks: dict[str, int] = {}
    for pool in status.pools:
        for replica in pool.replicas:
            if replica.state is ReplicaState.READY:
                name = f"{pool.pool} TP{replica.tp}"
                ready[name] = ready.get(name, 0) + 1
            if replica.replica_id in pool.clocks_mhz:
                name = f"{pool.pool} TP{replica.tp} {replica.replica_id[:4]}"
                clocks[name] = pool.clocks_mhz[replica.replica_id]
    load = {str(pool.pool): pool.load_rps for pool in status.pools}
    power_w, energy_j = sum(gpu.power_w for gpu in serving), sum(gpu.energy_j for gpu in serving)
    return Moment(at_s, power_w, energy_j, clocks, ready, load)


def write_reports(settings: Settings, trace: Sequence[Request], played: Played, out: Path) -> dict[str, Any]:
    """report.json and report.html in ``out``; returns the former's content. Plotting is loaded here, when everything
    that needs memory is down."""
    from wattray.report.page import Card, Section, page_of
    from wattray.report.page_file import write_page
    from wattray.report.serving_report import (
        Baseline,
        clocks_figure,
        decisions_table,
        power_figure,
        replicas_figure,
        tbt_figure,
        ttft_figure,
    )
    from wattray.report.training_report import training_cards, training_section

    slo, gpus = settings.slo.slo(), settings.serving_gpus
    profile = runtime.planning_profile(settings)
    replicas, pool = simulate_single_pool(trace, profile, gpus, slo, until_s=played.lasted_s)
    virtual = simulate_wattray(trace, settings, profile, until_s=played.lasted_s)
    completed = [s for s in played.sent if s.error is None]
    attainment = sum(s.met(slo) for s in played.sent) / len(played.sent)
    energy_j = sum(played.counters_j.values())
    saved = 1 - energy_j / pool.energy_j
    serving = {
        "requests_sent": len(played.sent),
        "requests_completed": len(completed),
        "energy_j": energy_j,
        "baseline_energy_j": pool.energy_j,
        "energy_saved_ratio": saved,
        "slo_attainment": attainment,
        "baseline_slo_attainment": pool.slo_attainment(slo),
        "baseline": f"single pool, {replicas} x TP{max(profile.tps)}@{profile.max_freq_mhz}, simulated",
        "same_policies_in_virtual_time_energy_j": virtual.energy_j,
        "lasted_s": played.lasted_s,
        "gpus": gpus,
        "gpu_counters_j": played.counters_j,
        "ttft_p50_s": _percentile([s.ttft_s for s in completed], 0.50),
        "ttft_p99_s": _percentile([s.ttft_s for s in completed], 0.99),
        "tbt_p99_s": _percentile([s.mean_tbt_s for s in completed if s.tokens > 1], 0.99),
        "requests": [
            {
                "sent_s": round(s.sent_s, 3),
                "input_tokens": s.request.input_tokens,
                "output_tokens": s.request.output_tokens,
                "ttft_s": round(s.ttft_s, 4),
                "mean_tbt_s": round(s.mean_tbt_s, 4),
                "met_slo": s.met(slo),
            }
            for s in played.sent
        ],
        "errors": sorted({s.error for s in played.sent if s.error is not None}),
        "decisions": [
            {"id": d.decision_id, "at_s": d.at_s - played.began_s, "by": d.source, "action": d.action, "why": d.why}
            for d in played.decisions
        ],
    }
    baselines = [
        Baseline(f"static: {replicas} x TP{max(profile.tps)} at full clock", pool.energy_j, 0, replicas, pool.power_w),
        Baseline("wattray", virtual.energy_j, 0, 0, virtual.power_w),
    ]
    cards = [
        Card(f"{saved:.1%}", "energy saved against the static pool (simulated GPUs)"),
        Card(f"{energy_j / 1000:.0f} kJ", f"used, against {pool.energy_j / 1000:.0f} kJ"),
        Card(f"{attainment:.1%}", "of requests met their SLO"),
        Card(f"{len(completed)} / {len(played.sent)}", "requests completed"),
        Card(str(len(played.decisions)), "decisions taken"),
        *([] if played.training is None else training_cards(played.training)),
    ]
    figures = [
        power_figure(played.moments, baselines),
        clocks_figure(played.moments),
        replicas_figure(played.moments),
        ttft_figure(played.sent, slo),
        tbt_figure(played.sent, slo),
    ]
    note = (
        f"One simulated node, {gpus} H100s for serving, {settings.training.gpus} for training. Real HTTP requests "
        "go through Ray Serve at the trace's arrival times. Serving energy is the sum of its simulated GPUs' counters, "
        "idle GPUs included, over the same time as the baseline, which is simulated on the same requests: the fewest "
        f"TP{max(profile.tps)} replicas at full clock that hold the SLO for 99 %."
    )
    table = decisions_table(played.decisions, played.began_s)
    advised = played.status.control == "recommend"
    told = ". ".join(advice_told(played.status)) + "."
    sections = [
        *([Section("What control would have saved", told)] if advised else []),
        Section("Serving", f"Profile: {profile.name}.", figures),
        *([] if played.training is None else [training_section(played.training)]),
        Section("Decisions", "Every action of the control plane and why it was taken.", (), table),
    ]
    write_page(out / "report.html", page_of("wattray demo", note, cards, sections))
    report = {"serving": serving}
    if advised:
        report["advice"] = advice_json(played.status, None)
    if played.training is not None:
        report["training"] = played.training.report()
    write_text(out / "report.json", json_text(report))
    return report


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
