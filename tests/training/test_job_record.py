import pytest
from pydantic import ValidationError
from tests_support import pipeline_choices

from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances, JobSpec, PipelineId
from control_plane.training.profile import profile_of
from control_plane.training.schedules import one_f_one_b
from control_plane.training.switch_rules import SwitchRules

SPEC = JobSpec(profile_of(pipeline_choices(2)), one_f_one_b(2, 4), 80.0, 0.01, SwitchRules(0.02, 0.03, 4))
P0, P1, P2 = PipelineId("p0"), PipelineId("p1"), PipelineId("p2")


def test_a_job_comes_back_from_its_json_as_it_was() -> None:
    record = JobRecord.of("llm", SPEC).with_straggler(P1, 1.3, 7.0).with_slow_stages(P2, (1.0, 1.2))
    again = JobRecord.model_validate_json(record.model_dump_json())
    assert again == record
    assert again.spec() == SPEC
    assert again.circumstances(P0, 8.0) == Circumstances(1.3, (), frozenset({(1.0, 1.2)}))


def test_the_slowest_other_pipeline_sets_the_pace_until_it_recovers() -> None:
    record = JobRecord.of("llm", SPEC)
    assert record.circumstances(P0, 0.0) == Circumstances()
    both = record.with_straggler(P1, 1.3).with_straggler(P2, 1.1)
    assert both.circumstances(P0, 0.0).degree == 1.3
    assert both.circumstances(P2, 0.0).degree == pytest.approx(1.3 / 1.1)
    assert both.circumstances(P1, 0.0).degree == 1.0
    assert both.with_straggler(P1, 1.0).circumstances(P0, 0.0).degree == 1.1
    assert both.with_straggler(P1, 1.0).with_straggler(P2, 1.0) == record


def test_an_announced_straggler_counts_from_its_start() -> None:
    record = JobRecord.of("llm", SPEC).with_straggler(P1, 1.3, start_unix_s=50.0)
    assert [record.circumstances(P0, now_s).degree for now_s in (0.0, 49.9, 50.0)] == [1.0, 1.0, 1.3]


def test_what_was_detected_is_the_pipelines_own_and_the_others_affair() -> None:
    record = JobRecord.of("llm", SPEC).with_slow_stages(P1, (1.0, 1.25))
    assert record.circumstances(P1, 0.0) == Circumstances(own=(1.0, 1.25))
    assert record.circumstances(P0, 0.0) == Circumstances(others=frozenset({(1.0, 1.25)}))
    assert record.with_slow_stages(P1, (1.0, 1.0)) == JobRecord.of("llm", SPEC)


def test_a_job_is_the_same_whoever_lags() -> None:
    record = JobRecord.of("llm", SPEC)
    assert record.is_same_job(record.with_straggler(P1, 1.3).with_slow_stages(P2, (1.1, 1.0)))
    assert not record.is_same_job(record.model_copy(update={"blocking_power_w": 81.0}))


@pytest.mark.parametrize("degree", [0.9, 0.0, -1.0, float("nan")])
def test_a_degree_below_one_is_refused(degree: float) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        JobRecord.of("llm", SPEC).with_straggler(P1, degree)


@pytest.mark.parametrize("name", ["", "../x", "A b", "x" * 80])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        JobRecord.of(name, SPEC)
