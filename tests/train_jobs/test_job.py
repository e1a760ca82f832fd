from pathlib import Path

import pytest

from control_plane.hardware.gpu_model import H100_SXM
from control_plane.hardware.stage_model import StageWork
from train_jobs.job import Job, JobError, job_lasting, parse_job, read_job


def healthy_s(job: Job) -> float:
    return job.costs.healthy_s(H100_SXM, job.schedule.microbatches)


def work_at(job: Job, iteration: int, stage: int) -> StageWork:
    return job.faults.slowed(job.costs.work(stage, "forward"), stage, iteration)


def test_an_empty_file_is_the_default_job(tmp_path: Path) -> None:
    assert parse_job({}) == Job()
    assert Job().schedule.stages == len(Job().stages) == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"iteratoins": 3}, "job: unknown field 'iteratoins'; did you mean 'iterations'?"),
        ({"straggler": {"degre": 1.2}}, "unknown field 'straggler.degre'; did you mean 'degree'?"),
        ({"stages": [{"layers": 2, "colour": 1}, {"layers": 2}]}, "unknown field 'stages.0.colour'; known: layers"),
        ({"schedule": {"stages": 3}}, "stages lists 2 stages, schedule.stages says 3"),
        ({"schedule": {"name": "gpipe"}}, "schedule.name: Input should be '1f1b' (got 'gpipe')"),
        ({"schedule": {"stages": 2, "microbatches": 1}}, "2 stages need at least as many microbatches, got 1"),
        ({"iterations": 10}, "straggler.to_iteration 22 is past the last of 10 iterations"),
        ({"straggler": {"from_iteration": 1, "to_iteration": 5}}, "is in the 2 warmup_iterations"),
        ({"straggler": {"from_iteration": 9, "to_iteration": 5}}, "to_iteration 5 is not after from_iteration 9"),
        ({"straggler": {"from_iteration": 5, "to_iteration": 9, "degree": 0.5}}, "degree: Input should be greater"),
        ({"sweep": {"clocks_mhz": [1980, 1000]}}, "has no clock of 1000 MHz; the nearest is 990"),
        ({"sweep": {"clocks_mhz": [1590, 990]}}, "the highest clock, 1980 MHz, must be measured"),
        (
            {"policy": "perseu"},
            "policy: Input should be 'perseus', 'zeus-global', 'zeus-stage', 'envpipe' or",
        ),
        (
            {"data_parallel": 2, "straggler": {"from_iteration": 3, "to_iteration": 5, "pipeline": 2}},
            "straggler.pipeline 2 is not there, data_parallel runs 2, from 0",
        ),
        (
            {"straggler": {"from_iteration": 3, "to_iteration": 5, "announced": False}},
            "straggler.announced false: a pipeline that is not run cannot be found; set data_parallel to 2 or more",
        ),
        (
            {"slow_gpu": {"stage": 0, "pipeline": 1, "from_iteration": 3, "to_iteration": 5}},
            "slow_gpu.pipeline 1 is not there, data_parallel runs 1, from 0",
        ),
        ({"name": "../up"}, "name: String should match pattern"),
        ({"layer": {"forward_s": 0}}, "layer.forward_s: Input should be greater than 0 (got 0)"),
    ],
)
def test_a_bad_job_is_told_by_field_value_and_fix(values: dict[str, object], told: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(values)
    assert told in str(caught.value)


def test_two_faults_are_told_at_once() -> None:
    with pytest.raises(JobError) as caught:
        parse_job({"colour": 1, "iterations": 0})
    assert "colour" in str(caught.value)
    assert "iterations" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"), [("- 1", "expected a mapping"), ("a: [", "while parsing"), (None, "No such file")]
)
def test_a_file_that_is_no_job_names_itself(tmp_path: Path, content: str | None, told: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(JobError, match=told) as caught:
        read_job(path)
    assert str(path) in str(caught.value)


def test_the_straggler_lasts_from_its_first_iteration_to_before_its_last() -> None:
    job = parse_job({"straggler": {"from_iteration": 4, "to_iteration": 6, "degree": 1.5}})
    assert [job.faults.degree_at(i) for i in range(3, 8)] == [1.0, 1.5, 1.5, 1.0, 1.0]


def test_a_backward_costs_twice_a_forward_and_a_stage_its_layers() -> None:
    job = Job()
    forward, backward = job.costs.work(0, "forward"), job.costs.work(0, "backward")
    assert backward.compute_s == pytest.approx(2 * forward.compute_s)
    heavier = job.costs.work(1, "forward")
    assert heavier.compute_s / forward.compute_s == pytest.approx(4 / 3)


def test_a_healthy_iteration_is_every_stage_once_and_the_heaviest_for_the_rest() -> None:
    assert healthy_s(Job()) == pytest.approx(0.216 + 0.288 + 5 * 0.288)


@pytest.mark.parametrize("seconds", [1.0, 60.0, 90.0])
def test_a_job_lasts_as_long_as_asked_with_the_straggler_in_its_middle(seconds: float) -> None:
    job = job_lasting(seconds, compare_losses=True)
    lasts_s = sum(healthy_s(job) * job.faults.degree_at(number) for number in range(job.iterations))
    assert lasts_s == pytest.approx(max(seconds, 12 * healthy_s(job) * 1.0667), rel=0.05)
    assert job.straggler is not None
    assert 0 < job.straggler.from_iteration < job.straggler.to_iteration < job.iterations


def test_a_slow_gpu_stretches_its_stage_for_its_iterations_only() -> None:
    job = parse_job({"slow_gpu": {"stage": 1, "from_iteration": 3, "to_iteration": 5, "ratio": 1.5}})
    assert [job.faults.slow_ratio_at(i) for i in range(2, 6)] == [1.0, 1.5, 1.5, 1.0]
    full_mhz = H100_SXM.max_freq_mhz
    healthy_s, slow_s = (work_at(job, i, 1).time_s(H100_SXM, full_mhz) for i in (2, 3))
    assert slow_s == pytest.approx(1.5 * healthy_s)
    assert work_at(job, 3, 0) == job.costs.work(0, "forward")


@pytest.mark.parametrize(
    ("slow_gpu", "told"),
    [
        ({"stage": 2, "from_iteration": 3, "to_iteration": 5}, "slow_gpu.stage 2 is not there"),
        ({"stage": 0, "from_iteration": 5, "to_iteration": 5}, "to_iteration 5 is not after"),
        ({"stage": 0, "from_iteration": 1, "to_iteration": 5}, "slow_gpu.from_iteration 1 is in the 2 warmup"),
        ({"stage": 0, "from_iteration": 3, "to_iteration": 99}, "slow_gpu.to_iteration 99 is past the last"),
        ({"stage": 0, "from_iteration": 3, "to_iteration": 5, "ration": 2}, "did you mean 'ratio'"),
    ],
)
def test_a_slow_gpu_that_cannot_be_is_refused(slow_gpu: dict[str, object], told: str) -> None:
    with pytest.raises(JobError, match=told):
        parse_job({"slow_gpu": slow_gpu})


def test_clocks_are_held_for_what_the_gpu_needs_to_settle_unless_the_file_says_otherwise() -> None:
    assert parse_job({}).switch_time_s == pytest.approx(H100_SXM.settle_ns * 1e-9)
    assert parse_job({"switch_time_s": 0.0}).switch_time_s == 0.0


def test_a_straggling_pipeline_of_several_is_slow_itself_and_an_unannounced_one_is_told_to_nobody() -> None:
    lag = {"from_iteration": 4, "to_iteration": 6, "degree": 1.5, "pipeline": 1, "announced": False}
    job = parse_job({"data_parallel": 2, "straggler": lag})
    forward = job.costs.work(0, "forward")
    taken = [job.faults.slowed(forward, 0, 4, pipeline).compute_s / forward.compute_s for pipeline in (0, 1)]
    assert taken == [1.0, pytest.approx(1.5)]
    assert job.faults.slowed(forward, 0, 6, 1) == forward
    assert (job.faults.degree_at(4), job.faults.announced_at(4), job.faults.waited_for_at(4)) == (1.5, 1.0, 1.0)
    assert job.ranks == 4


def test_the_example_is_a_job() -> None:
    job = read_job(Path(__file__).parents[2] / "train_jobs" / "examples" / "pipeline_2x2.yaml")
    assert (job.data_parallel, job.schedule.stages) == (2, 2)
    assert job.straggler is not None
    assert not job.straggler.announced
