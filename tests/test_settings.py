import pytest

from control_plane.domain import InputClass
from control_plane.settings import Settings, SettingsError, parse_settings


def test_no_values_are_the_defaults() -> None:
    assert parse_settings({}) == Settings()


def test_an_unknown_key_names_itself_and_its_likely_fix() -> None:
    with pytest.raises(SettingsError, match=r"my\.yaml: unknown setting 'gpu\.cuont'; did you mean 'count'"):
        parse_settings({"gpu": {"cuont": 4}}, "my.yaml")


def test_a_value_out_of_range_names_field_and_value() -> None:
    with pytest.raises(SettingsError, match=r"slo\.tbt_s: .*greater than 0.*got -1"):
        parse_settings({"slo": {"tbt_s": -1}})


def test_two_faults_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"gpu": {"count": 0}, "colour": "red"})
    assert "gpu.count" in str(caught.value)
    assert "colour" in str(caught.value)


def test_pools_must_serve_every_class_once() -> None:
    twice = {"pools": [{"name": "a", "input_classes": ["S", "M"]}, {"name": "b", "input_classes": ["M", "L"]}]}
    with pytest.raises(SettingsError, match="exactly once"):
        parse_settings(twice)


def test_a_pool_cannot_spill_to_itself_or_to_nowhere() -> None:
    for target in ("one", "elsewhere"):
        pools = [{"name": "one", "input_classes": ["S", "M", "L"], "spill_to": target}]
        with pytest.raises(SettingsError, match="spills to"):
            parse_settings({"pools": pools})


def test_every_input_class_has_a_pool() -> None:
    settings = Settings()
    assert {settings.pool_of(name) for name in InputClass} == {pool.pool for pool in settings.pools}


def test_serving_plans_with_the_gpus_that_training_leaves() -> None:
    assert parse_settings({"gpu": {"count": 34}, "training": {"gpus": 2}}).serving_gpus == 32
    with pytest.raises(SettingsError, match=r"training\.gpus 4 leaves serving none of 4 GPUs"):
        parse_settings({"gpu": {"count": 4}, "training": {"gpus": 4}})
