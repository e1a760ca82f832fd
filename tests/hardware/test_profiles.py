"""The embedded profiles: what they say, where it comes from, and how far off it is on rows held out."""

import json
from inspect import signature
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from control_plane.domain import REQUEST_TYPES, ClassLoad, InputClass, Load, RequestType, Shape, Slo
from control_plane.hardware.fitted_times import Cell, Pins, pooled, rising
from control_plane.hardware.gpu_model import GpuSpec
from control_plane.hardware.profile_file import ProfileError
from control_plane.hardware.profile_report import curves, table_rows
from control_plane.hardware.profiles import DEFAULT_PROFILE, PROFILE_NAMES, fits, load_profile
from control_plane.settings import Settings
from wattray.cli_simulate import bound_command, simulate_command

OLD = "llama2-70b-h100-2023"
MEDIUM = Load({InputClass.MEDIUM: ClassLoad(1.0, 600, 200)})


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_every_name_loads_with_its_era_and_source(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.evidence.era
    assert profile.evidence.source
    assert isinstance(profile.gpu, GpuSpec)
    assert set(profile.freqs_mhz) <= set(profile.gpu.freqs_mhz)
    for tp in profile.tps:
        for freq_mhz in (345, 990, 1980):
            table = profile.times(tp).alpha_ps(freq_mhz)
            limits = profile.limits(tp)
            assert len(table) == limits.batch_tokens + limits.batch_requests + 1
            assert list(table) == sorted(table)


def test_one_profile_is_the_default_everywhere() -> None:
    assert DEFAULT_PROFILE == "llama2-70b-h100"
    assert Settings().profile == DEFAULT_PROFILE
    for command in (simulate_command, bound_command):
        assert signature(command).parameters["profile"].default is None, "the settings' profile holds"


def test_the_roofline_goes_through_the_public_anchor() -> None:
    profile = load_profile("llama2-70b-h100-current")
    machine = profile.machine(Shape(4, 1980))
    for batch in (1, 16, 64):
        anchor_ms = 15.7 + 0.104 * batch
        context_ms = 512 * machine.context_s * batch * 1e3
        assert machine.iteration_s[batch] * 1e3 + context_ms == pytest.approx(anchor_ms, rel=0.03)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ProfileError, match=r"unknown profile 'gpt'; known are llama2-70b-h100, .*llama8b-h200"):
        load_profile("gpt")


def test_limits_can_be_given() -> None:
    assert load_profile(OLD, Slo(tbt_s=0.05)).slo.tbt_s == 0.05


def test_shapes_outside_a_profile_are_refused() -> None:
    profile = load_profile("llama8b-h200")
    with pytest.raises(ValueError, match=r"made for TP \(1,\), not 8"):
        profile.meets_slo(Shape(8, 1980), MEDIUM)
    with pytest.raises(ValueError, match="no clock of 1000 MHz"):
        profile.meets_slo(Shape(1, 1000), MEDIUM)


def test_what_lies_beyond_the_measurements_is_named() -> None:
    profile = load_profile("llama8b-h200")
    assert profile.beyond(Shape(1, 1980), MEDIUM) == ()
    (clock,) = profile.beyond(Shape(1, 1200), MEDIUM)
    assert clock.startswith("clock 1200 MHz is scaled by physics (measured: 1980)")
    long = Load({InputClass.LONG: ClassLoad(0.1, 6000, 10)})
    assert profile.beyond(Shape(1, 1980), long) == ("inputs of 6000 tokens, measured up to 4096",)


def test_the_2023_engine_is_exact_where_splitwise_measured(measurements: Path, fit: ModuleType) -> None:
    """Prompts alone and decodes; where measured times fall as tokens rise, neighbours are pooled."""
    data = fit.read_splitwise(measurements / "splitwise_perf_model.csv")
    profile = load_profile(OLD)
    exact, apart = 0, []
    for row in range(len(data.tp)):
        machine = profile.machine(Shape(int(data.tp[row]), 1980))
        prompt, batch = int(data.prompt[row]), int(data.batch[row])
        errors = []
        if batch == 1:
            predicted_s = machine.iteration_s[prompt] + machine.attention_s * prompt**2 / 2
            errors.append(abs(predicted_s / data.prefill_s[row] - 1))
        if prompt == 512:
            predicted_s = machine.iteration_s[batch] + machine.context_s * fit.DECODE_CONTEXT * batch
            errors.append(abs(predicted_s / data.decode_s[row] - 1))
        exact += sum(error < 1e-3 for error in errors)
        apart += [error for error in errors if error >= 1e-3]
    assert exact >= 30
    assert len(apart) <= 11
    assert max(apart) < 0.08


def test_splitwise_rows_held_out(measurements: Path, fit: ModuleType) -> None:
    errors = fit.fit_llama2(fit.read_splitwise(measurements / "splitwise_perf_model.csv"))["errors"]
    assert errors["prefill_held_out"] <= 0.06
    assert errors["decode_held_out"] <= 0.03
    assert errors == fits().llama2.errors


def test_h200_points_held_out(measurements: Path, fit: ModuleType) -> None:
    errors = fit.fit_llama8b(fit.read_h200(measurements / "h200_llama8b_default_clocks.json"))["errors"]
    assert errors["time_held_out"] <= 0.08
    assert errors["power_held_out"] <= 0.08
    assert errors == fits().llama8b.errors


def test_table_1_is_exact_where_the_cell_exists(measurements: Path, fit: ModuleType) -> None:
    table = load_profile(OLD).energy_table
    assert table is not None
    cells = fit.read_table(measurements / "dynamollm_table1.csv")
    filled = 0
    for name, by_tp in cells.items():
        for tp, row in by_tp.items():
            for clock_mhz, energy_wh in zip((800, 1200, 1600, 2000), row, strict=True):
                found = table.energy(RequestType.parse(name), Shape(int(tp), clock_mhz))
                assert (found is None) == (energy_wh is None)
                if found is not None:
                    assert found == (energy_wh, "measured")
                    filled += 1
    assert filled == 66


def test_the_fit_to_table_1_chooses_well() -> None:
    table = load_profile(OLD).energy_table
    assert table is not None
    regrets = table.regret()
    assert set(regrets) == set(REQUEST_TYPES)
    assert sum(regrets.values()) / len(regrets) <= 0.04


def test_between_the_clocks_of_table_1_the_fit_speaks_and_beyond_them_nobody() -> None:
    table = load_profile(OLD).energy_table
    assert table is not None
    kind = RequestType.parse("SS")
    near = table.energy(kind, Shape(8, 1980))
    assert near == (1.49, "measured")
    between = table.energy(kind, Shape(8, 1395))
    assert between is not None
    assert between.origin == "fitted"
    assert 1.1 < between.energy_wh < 1.4
    assert table.energy(RequestType.parse("LL"), Shape(8, 990)) is None
    with pytest.raises(ValueError, match="not 600"):
        table.energy(kind, Shape(8, 600))
    with pytest.raises(ValueError, match="not 1"):
        table.energy(kind, Shape(1, 1200))


def test_the_2023_machine_agrees_with_table_1() -> None:
    """It was never fitted to the table: which cells hold the SLO, and which shape needs the least energy."""
    rows = table_rows(load_profile(OLD))
    assert sum(row.slo_agreement for row in rows) >= 90
    assert sum(row.cells for row in rows) == 108
    assert sum(row.machine_regret_ratio for row in rows) / len(rows) <= 0.06
    assert table_rows(load_profile(DEFAULT_PROFILE)) == []


@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_curves_cover_every_type_and_shape(name: str) -> None:
    profile = load_profile(name)
    rows = curves(profile)
    assert len(rows) == len(REQUEST_TYPES) * len(profile.tps) * len(profile.freqs_mhz)
    top = [row for row in rows if row.shape.freq_mhz == profile.freqs_mhz[-1] and row.max_load_rps > 0]
    assert all(row.meets_slo for row in top)
    assert json.dumps([row.max_load_rps for row in rows])


def test_pins_are_exact_at_their_cells_and_pool_what_falls() -> None:
    cells = [Cell(tokens=1, ms=10.0), Cell(tokens=8, ms=14.0), Cell(tokens=64, ms=12.0), Cell(tokens=512, ms=50.0)]
    fitted_s = np.array([0.011, 0.012, 0.014, 0.04])
    pinned = Pins.of(cells, fitted_s).factors(np.array([1.0, 8.0, 64.0, 512.0])) * fitted_s
    assert pinned[[0, 3]] == pytest.approx([0.010, 0.050])
    assert pinned[1] == pytest.approx(pinned[2]) == pytest.approx((0.014 * 0.012) ** 0.5)


def test_pooling_and_levelling_never_fall() -> None:
    assert pooled(np.array([3.0, 1.0, 2.0, 5.0, 4.0])).tolist() == [2.0, 2.0, 2.0, 4.5, 4.5]
    assert rising(np.array([1.0, 3.0, 2.0])).tolist() == [1.0, 3.0, 3.0]
