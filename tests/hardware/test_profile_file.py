"""A user's own profile: what is read, and what each fault says."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from control_plane.domain import ClassLoad, InputClass, Load, Shape, Slo
from control_plane.hardware.profile_file import ProfileError, ProfileFile, dump_profile, parse_profile
from control_plane.hardware.profiles import load_profile
from control_plane.hardware.replica_model import ReplicaModel

LOAD = Load({InputClass.MEDIUM: ClassLoad(1.0, 600, 200)})


def content() -> dict[str, Any]:
    """Two TPs at two clocks."""

    def shape(tp: int, freq_mhz: int) -> dict[str, Any]:
        slow = 1980 / freq_mhz / tp
        times_ms = {1: 20 * slow, 64: 24 * slow, 2048: 300 * slow}
        watts = {1: 300.0, 64: 320.0, 2048: 600.0}
        points = [
            {"tokens": tokens, "iteration_ms": ms, "power_w": tp * (127 + (watts[tokens] - 127) * freq_mhz / 1980)}
            for tokens, ms in times_ms.items()
        ]
        return {"tp": tp, "freq_mhz": freq_mhz, "attention_ps_per_pair": 1000.0, "points": points}

    return {
        "schema": "wattray-profile/1",
        "name": "mine",
        "source": "a bench",
        "gpu": {"name": "X100", "idle_w": 84, "context_w": 127, "power_limit_w": 700},
        "freqs_mhz": [1200, 1980],
        "replicas": [{"tp": tp, "kv_tokens": 100_000 * tp, "context_ns_per_token": 50.0} for tp in (1, 2)],
        "shapes": [shape(tp, freq) for tp in (1, 2) for freq in (1200, 1980)],
    }


def text_of(change: Callable[[dict[str, Any]], object]) -> str:
    changed = content()
    change(changed)
    return json.dumps(changed, indent=1)


def test_a_profile_is_exact_at_its_points_and_straight_between_them() -> None:
    profile = parse_profile(json.dumps(content()))
    table = profile.times(2).alpha_ps(1980)
    assert [table[tokens] for tokens in (1, 64, 2048)] == [10 * 10**9, 12 * 10**9, 150 * 10**9]
    assert table[(64 + 2048) // 2] == pytest.approx(81 * 10**9)
    assert profile.times(2).context_ps == 50_000
    assert profile.times(2).attention_ps(1980) == 1000
    assert profile.limits(2).kv_tokens == 200_000


def test_measured_powers_come_back_at_every_clock() -> None:
    profile = parse_profile(json.dumps(content()))
    for tp in (1, 2):
        for freq_mhz in (1200, 1980):
            machine = profile.machine(Shape(tp, freq_mhz))
            assert machine.power_w[2048] == pytest.approx(tp * (127 + 473 * freq_mhz / 1980), rel=0.01)
    assert profile.power_w(Shape(2, 1200), LOAD) < profile.power_w(Shape(2, 1980), LOAD)


def test_a_user_profile_runs_in_the_replica_model() -> None:
    profile = load_profile(json.dumps(content()), source="mine.json")
    model = ReplicaModel(profile.times(1), profile.limits(1))
    model.submit("a", 600, 3, 0)
    iteration = model.begin(1980)
    assert iteration is not None
    assert iteration.prefill_tokens == 600
    assert profile.max_load(Shape(1, 1980), LOAD) > 0


def test_yaml_and_a_byte_order_mark_are_read() -> None:
    assert parse_profile("\ufeff" + json.dumps(content())).name == "mine"


def test_a_dumped_profile_is_read_back_the_same() -> None:
    file = ProfileFile.model_validate(content())
    assert ProfileFile.model_validate_json(dump_profile(file)) == file


def test_an_own_slo_overrides_the_files() -> None:
    profile = parse_profile(json.dumps(content()), slo=Slo(tbt_s=0.03))
    assert profile.slo.tbt_s == 0.03


def test_what_was_not_measured_is_refused() -> None:
    profile = parse_profile(json.dumps(content()))
    with pytest.raises(ValueError, match="made for TP"):
        profile.max_load(Shape(4, 1980), LOAD)
    with pytest.raises(ValueError, match="no clock of 1500 MHz"):
        profile.max_load(Shape(1, 1500), LOAD)


def test_without_powers_the_curve_is_assumed_and_said_so() -> None:
    def drop(changed: dict[str, Any]) -> None:
        for shape in changed["shapes"]:
            for point in shape["points"]:
                del point["power_w"]

    profile = parse_profile(text_of(drop))
    assert "no power measured" in profile.evidence.notes[-1]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "missing shape": (lambda c: c["shapes"].pop(), "shapes", "no measurements of TP2@1980"),
    "shape outside the grid": (lambda c: c["shapes"][0].update(freq_mhz=1300), "shapes.0", "TP1@1300 is not among"),
    "shape twice": (lambda c: c["shapes"].append(c["shapes"][0]), "shapes.4", "is there twice"),
    "falling times": (
        lambda c: c["shapes"][0]["points"][1].update(iteration_ms=1.0),
        "shapes.0.points.1.iteration_ms",
        "not monotone in load",
    ),
    "falling tokens": (
        lambda c: c["shapes"][0]["points"][1].update(tokens=1),
        "shapes.0.points.1.tokens",
        "tokens must rise",
    ),
    "table too short": (lambda c: c.update(batch_tokens=4096), "shapes.0.points.2.tokens", "measured to 2048 tokens"),
    "missing field": (lambda c: c["gpu"].pop("idle_w"), "gpu.idle_w", "is missing"),
    "unknown field": (lambda c: c["gpu"].update(idle_kw=1), "gpu.idle_kw", "is not a field"),
    "wrong schema": (lambda c: c.update(schema="wattray-profile/9"), "schema", "wattray-profile/1"),
    "some power": (lambda c: c["shapes"][0]["points"][0].pop("power_w"), "shapes", "at every point or at none"),
    "odd power": (
        lambda c: c["shapes"][0]["points"][2].update(power_w=2500.0),
        "shapes",
        "power_w does not follow",
    ),
    "negative": (lambda c: c["replicas"][0].update(kv_tokens=-1), "replicas.0.kv_tokens", "greater than or equal to 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_line_and_field(fault: str) -> None:
    change, field, reason = FAULTS[fault]
    text = text_of(change)
    with pytest.raises(ProfileError) as raised:
        parse_profile(text, "mine.json")
    first = str(raised.value).splitlines()[0]
    assert first.startswith("mine.json: line ")
    assert f": {field}: " in first
    assert reason in str(raised.value)
    line = int(first.split("line ")[1].split(":")[0])
    lines = text.splitlines()
    last = field.split(".")[-1]
    if not last.isdigit() and "missing" not in reason:
        assert f'"{last}"' in lines[line - 1]


def test_broken_text_names_the_line() -> None:
    with pytest.raises(ProfileError, match=r"^mine\.json: line 2: not JSON"):
        parse_profile('{"schema": "x",\n "name": ]}', "mine.json")
    with pytest.raises(ProfileError, match="a profile is a mapping"):
        parse_profile("[1,\n2]", "mine.json")
