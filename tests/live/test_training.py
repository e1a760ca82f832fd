"""Training on the live control plane: a Ray job under a plan, and what happens when planner or worker dies."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from tests_support import ROOT

from actors import metrics, runtime
from actors.training_messages import job_of_owner
from train_jobs.background import start_training
from train_jobs.job import parse_job
from train_jobs.training_result import TrainingResult
from wattray.errors import WattrayError

pytestmark = pytest.mark.ray

JOB = {
    "name": "live",
    "iterations": 22,
    "layer": {"forward_s": 0.015},
    "straggler": {"from_iteration": 6, "to_iteration": 10, "degree": 1.2},
    "slow_gpu": {"stage": 1, "from_iteration": 12, "to_iteration": 18, "ratio": 1.2},
    "compare_losses": True,
}


def submit(live: Any, *command: str) -> "subprocess.CompletedProcess[str]":
    """`ray job submit --working-dir .`, as a person does it in the repository."""
    ray_job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    address = ["--address", f"http://127.0.0.1:{live.ports[1]}"]
    asked = [*ray_job, *address, "--", sys.executable, "-m", *command]
    for _ in range(30):
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=240)
        if "No available agent to submit job" not in done.stderr:
            break
        time.sleep(2)
    return done


@pytest.fixture(scope="module")
def told(live: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], TrainingResult]:
    """One job, submitted: its report and its run."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    asked = ["--config", str(folder / "job.yaml"), "--json", str(folder / "out.json"), "--run", str(folder / "run")]
    done = submit(live, "train_jobs", *asked)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads((folder / "out.json").read_text())["training"]
    return report, TrainingResult.from_json((folder / "run").read_text())


def test_a_submitted_job_saves_energy_at_the_same_speed(told: tuple[dict[str, Any], TrainingResult]) -> None:
    report, _ = told
    assert report["iterations"] == 22
    assert report["energy_j"] < 0.97 * report["baseline_energy_j"]
    assert 0.98 <= report["slowdown_ratio"] <= 1.02
    assert report["stragglers_handled"] == 1
    assert report["worker_starts"] == 1


def test_its_losses_equal_an_unmanaged_run_exactly(told: tuple[dict[str, Any], TrainingResult]) -> None:
    _, result = told
    assert result.losses == result.log.unmanaged_losses
    assert result.losses[-1] < result.losses[0] / 2


def test_the_baseline_is_what_full_clock_iterations_really_took(told: tuple[dict[str, Any], TrainingResult]) -> None:
    _, result = told
    full_clock = [record for record in result.log.iterations if record.planned_degree == 0 and record.degree == 1]
    known = result.log.schedules[0]
    assert len(full_clock) >= 2
    for record in full_clock:
        assert record.time_s == pytest.approx(known.all_max_time_s, rel=2e-3)
        assert record.energy_j == pytest.approx(known.all_max_energy_j, rel=2e-3)


def test_the_straggler_is_waited_for_at_lower_clocks_and_then_no_more(
    told: tuple[dict[str, Any], TrainingResult],
) -> None:
    _, result = told
    during = [record for record in result.log.iterations if record.degree > 1]
    after = [record for record in result.log.iterations if 10 <= record.iteration < 12]
    assert {record.planned_degree for record in during[1:]} == {1.2}
    assert all(record.own_time_s <= record.time_s for record in during)
    assert {record.planned_degree for record in after[1:]} == {1.0}
    spans = {record.planned_degree: record.spans for record in result.log.iterations if record.spans}
    mean_mhz = {degree: sum(s.freq_mhz for s in kept) / len(kept) for degree, kept in spans.items()}
    assert mean_mhz[1.2] < mean_mhz[1.0] < mean_mhz[0.0] == 1980


def test_a_slow_gpu_nobody_announced_is_found_and_planned_for_until_one_report_after_it(
    told: tuple[dict[str, Any], TrainingResult],
) -> None:
    """Two reports find it; its schedule lets the other stage slow down to it. The report of the first iteration that
    is as fast as it should be ends that."""
    _, result = told
    records = result.log.iterations
    found = records[15].planned_degree
    assert 1.1 < found < 1.21
    assert [record.planned_degree for record in records[12:14]] == [1.0, 1.0]
    assert [record.planned_degree for record in records[15:19]] == [found] * 4
    assert [record.planned_degree for record in records[19:]] == [1.0] * 3
    chosen = next(schedule for schedule in result.log.schedules if schedule.stage_ratios)
    assert chosen.degree == found
    assert chosen.stage_ratios == (1.0, pytest.approx(1.2, rel=0.02))
    for record in records[16:18]:
        assert record.time_s == pytest.approx(chosen.all_max_time_s, rel=0.02)
        assert record.energy_j < 0.97 * chosen.all_max_energy_j


def test_computations_follow_the_pipelines_dependencies(told: tuple[dict[str, Any], TrainingResult]) -> None:
    _, result = told
    for record in result.log.iterations:
        at = {(span.stage, span.instruction, span.microbatch): span for span in record.spans}
        for (stage, instruction, microbatch), span in at.items():
            upstream = stage - 1 if instruction == "forward" else stage + 1
            needed = at.get((upstream, instruction, microbatch))
            assert needed is None or span.begin_s >= needed.end_s - 1e-9


def test_the_client_returns_the_jobs_frontier(live: Any, told: tuple[dict[str, Any], TrainingResult]) -> None:
    _, result = told
    frontier = live.client.frontier("live")
    assert frontier.t_min_s == result.log.schedules[0].t_min_s
    assert frontier.samples[0].energy_j < frontier.all_max_energy_j
    assert result.frontier is not None
    assert result.frontier.samples == frontier.samples
    with pytest.raises(WattrayError, match="no job 'nobody' is registered; known: live"):
        live.client.frontier("nobody")


def test_a_job_that_ended_gives_its_leases_back(live: Any, told: tuple[dict[str, Any], TrainingResult]) -> None:
    agent = runtime.actor(runtime.agent_names()[0])
    assert "live" not in {job_of_owner(owner) for owner, _ in ray.get(agent.leases.remote()).values()}


def test_serving_and_training_share_no_gpu(live: Any) -> None:
    site = ray.get(runtime.actor(runtime.PERSEUS_PLANNER).site.remote())
    assert len(site.gpu_uuids) == 4
    serving = {uuid for pool in live.client.status().pools for r in pool.replicas for uuid in r.gpu_uuids}
    assert serving
    assert not serving & set(site.gpu_uuids)
    assert sum(pool.gpu_budget for pool in live.client.status().pools) <= live.settings.gpu.count - 4


def test_wattray_status_runs_as_a_submitted_job(live: Any) -> None:
    done = submit(live, "wattray", "status")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "short-medium" in done.stdout


def eventually(claim: Any, patience_s: float) -> Any:
    deadline_s = time.monotonic() + patience_s
    while not (answer := claim()):
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.1)
    return answer


def answered(claim: Any) -> Any:
    """False while the actor that is asked restarts."""
    try:
        return claim()
    except ray.exceptions.RayError:
        return False


def processes(named: str, folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if named in " ".join(process.info["cmdline"] or []) and folder in process.environ().get("TMPDIR", ""):
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def exported_training_metrics(live: Any) -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{live.ports[2]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name for name in metrics.HELP if "_training_" in name and f"ray_{name}" in text}


def test_training_outlives_its_planner_and_a_worker(live: Any, own_temp: Path, tmp_path: Path) -> None:
    """The planner dies under a schedule: iterations go on under it. The GPU agent dies, and its restart resets every
    clock: the leases are taken again and the schedule's clocks are back. A worker dies: Ray Train starts all anew
    from a checkpoint, and the schedule comes back from the planner that has restarted from its files."""
    job = parse_job(
        {**JOB, "name": "survivor", "iterations": 16, "straggler": None, "slow_gpu": None, "checkpoint_every": 4}
    )
    running = start_training(job, f"127.0.0.1:{live.ports[0]}", tmp_path)
    agent = runtime.actor(runtime.agent_names()[0])

    def lowered() -> bool:
        clocks = [mhz for owner, mhz in ray.get(agent.leases.remote()).values() if job_of_owner(owner) == "survivor"]
        return bool(clocks) and min(clocks) < 1980

    def checkpoints() -> int:
        return len(list((own_temp / live.client.running.run_dir / "train").glob("survivor-*/checkpoint_*")))

    expected_metrics = {name for name in metrics.HELP if "_training_" in name}
    try:
        eventually(lambda: checkpoints() >= 1 and lowered(), 90)
        solvers = processes("actors.solver_main", str(own_temp))
        assert len(solvers) == 1
        ray.kill(runtime.actor(runtime.PERSEUS_PLANNER), no_restart=False)
        eventually(lambda: not solvers[0].is_running() or solvers[0].status() == psutil.STATUS_ZOMBIE, 20)
        before = checkpoints()
        eventually(lambda: checkpoints() > before, 60)
        ray.kill(agent, no_restart=False)
        eventually(lambda: answered(lowered), 60)
        workers = processes("RayTrainWorker", str(own_temp))
        assert len(workers) == 2
        workers[0].kill()
        eventually(lambda: exported_training_metrics(live) == expected_metrics, 60)
        result = running.result(150)
    finally:
        running.stop()
    assert [record.iteration for record in result.log.iterations] == list(range(16))
    assert result.log.starts == 2
    (folder,) = (own_temp / live.client.running.run_dir / "train").glob("survivor-*")
    assert (folder / "log.jsonl").exists()
    kept = {path.name for path in folder.glob("checkpoint_*/*")}
    assert {name for name in kept if not name.startswith(".")} == {"stage-0.pt", "stage-1.pt"}, "no log in them"
    assert result.losses == result.log.unmanaged_losses
    assert [record.planned_degree for record in result.log.iterations][-3:] == [1.0] * 3
    assert result.slowdown_ratio <= 1.02
    assert result.energy_j < result.baseline_energy_j


def test_two_jobs_that_start_together_train_on_different_gpus(live: Any, tmp_path: Path) -> None:
    short = {"iterations": 6, "straggler": None, "layer": {"forward_s": 0.01}}
    agent = runtime.actor(runtime.agent_names()[0])
    names = ("left", "right")
    running = [
        start_training(parse_job({**short, "name": name}), f"127.0.0.1:{live.ports[0]}", tmp_path / name)
        for name in names
    ]

    def owners() -> list[str | None]:
        return sorted(filter(None, (job_of_owner(owner) for owner, _ in ray.get(agent.leases.remote()).values())))

    try:
        eventually(lambda: owners() == ["left", "left", "right", "right"], 120)
        results = [process.result(150) for process in running]
    finally:
        for process in running:
            process.stop()
    assert [len(result.log.iterations) for result in results] == [6, 6]
    assert [result.log.starts for result in results] == [1, 1]
    eventually(lambda: not {"left", "right"} & set(owners()), 10)


def test_a_job_that_needs_more_gpus_than_are_kept_is_told(live: Any, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("data_parallel: 3\n")
    done = train("--config", str(config), "--address", f"127.0.0.1:{live.ports[0]}")
    assert done.returncode == 2
    assert (
        "has 2 stages in each of 3 pipelines and needs as many GPUs; the control plane keeps 4 for training: set"
        in done.stderr
    )


GRID = {
    "name": "grid",
    "iterations": 12,
    "data_parallel": 2,
    "layer": {"forward_s": 0.01},
    "straggler": {"from_iteration": 4, "to_iteration": 9, "pipeline": 1, "announced": False},
}


@pytest.mark.soak
def test_wattray_train_finds_a_slow_pipeline_of_a_grid_and_really_runs_the_baseline(live: Any, tmp_path: Path) -> None:
    """It attaches to the control plane that is up. The straggler is announced by nobody; the other pipeline slows down
    to it, and is back after one report."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(GRID))
    command = [sys.executable, "-m", "wattray", "train", str(tmp_path / "job.yaml"), "--json", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on the control plane that is up at" in done.stderr
    told = json.loads((tmp_path / "out").read_text())
    assert (told["iterations"], told["straggler_events"], told["worker_starts"]) == (12, 1, 1)
    assert told["losses_equal_all_max"] is True
    assert told["energy_j"] < 0.96 * told["all_max_energy_j"]
    assert told["slowdown_ratio"] == pytest.approx(1, abs=0.03)
    assert told["iteration_time_s"] == pytest.approx(told["all_max_iteration_time_s"] * told["slowdown_ratio"])
    assert "grid (perseus): 12 iterations" in done.stdout
    assert "24 of 24 iterations" in done.stderr


def test_an_operator_announces_a_straggler_of_a_job(live: Any, told: tuple[dict[str, Any], TrainingResult]) -> None:
    planner = runtime.actor(runtime.PERSEUS_PLANNER)
    for slowdown, expected in (("1.25", 1.25), ("1", 1.0)):
        asked = ["straggler", "live", "--pipeline", "7", "--slowdown", slowdown, "--for", "10m"]
        done = subprocess.run([sys.executable, "-m", "wattray", *asked], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ray.get(planner.schedule.remote("live")).degree == expected
    with pytest.raises(WattrayError, match="no job 'nobody' is registered"):
        live.client.announce_straggler("nobody", 1, 1.2)


@pytest.mark.soak
def test_a_users_own_loop_under_ray_train_runs_as_planned_with_the_same_losses(live: Any, tmp_path: Path) -> None:
    """Its planner and its GPUs are the control plane's."""
    command = [sys.executable, "tests/own_loop_ray.py", f"127.0.0.1:{live.ports[0]}", "40", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[1]["losses"] == ranks[1]["plain_losses"]
    for rank in ranks:
        assert rank["phase"] == "planned"
        assert rank["plan"]["measured_time_s"] <= 1.005 * rank["plan"]["all_max_time_s"]
    plan, energy_j = ranks[0]["plan"], sum(rank["plan"]["measured_rank_energy_j"] for rank in ranks)
    assert energy_j < plan["all_max_energy_j"]
    assert "own-loop" in ray.get(runtime.actor(runtime.PERSEUS_PLANNER).jobs.remote())
    agent = runtime.actor(runtime.agent_names()[0])
    assert "own-loop" not in {job_of_owner(owner) for owner, _ in ray.get(agent.leases.remote()).values()}


def train(*asked: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "train_jobs", *asked]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
