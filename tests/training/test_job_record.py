import pytest
from pydantic import ValidationError
from tests_support import pipeline_choices

from control_plane.training.job_record import JobRecord
from control_plane.training.pipeline import one_f_one_b
from control_plane.training.planner import JobSpec
from control_plane.training.profile import profile_of

SPEC = JobSpec(profile_of(pipeline_choices(2)), one_f_one_b(2, 4), 80.0)


def test_a_job_comes_back_from_its_json_as_it_was() -> None:
    record = JobRecord.of("llm", SPEC).with_straggler("p1", 1.3)
    again = JobRecord.model_validate_json(record.model_dump_json())
    assert again == record
    assert again.spec().schedule == SPEC.schedule
    assert dict(again.spec().profile.choices) == dict(SPEC.profile.choices)
    assert again.degree == 1.3


def test_the_slowest_pipeline_sets_the_pace_until_it_recovers() -> None:
    record = JobRecord.of("llm", SPEC)
    assert record.degree == 1.0
    both = record.with_straggler("p1", 1.3).with_straggler("p2", 1.1)
    assert both.degree == 1.3
    assert both.with_straggler("p1", 1.0).degree == 1.1
    assert both.with_straggler("p1", 1.0).with_straggler("p2", 1.0) == record


@pytest.mark.parametrize("degree", [0.9, 0.0, -1.0, float("nan")])
def test_a_degree_below_one_is_refused(degree: float) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        JobRecord.of("llm", SPEC).with_straggler("p1", degree)


@pytest.mark.parametrize("name", ["", "../x", "A b", "x" * 80])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        JobRecord.of(name, SPEC)
