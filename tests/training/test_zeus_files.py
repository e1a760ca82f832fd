"""Files of Zeus's pipeline frequency optimizer, read and written."""

import json
from pathlib import Path

import pytest

from control_plane.training.job_spec import ScheduledStep
from control_plane.training.profile import Choice, StageProfileError
from control_plane.training.zeus_files import point_solution, read_offline
from wattray.stage_profiles import read_profile_file


def rank_result(rank: int, stage: int, time_s: float = 0.1) -> dict[str, object]:
    return {
        "rank": rank, "dp_rank": 0, "pp_rank": stage, "tp_rank": rank % 2,
        "forward_time": {"1410": time_s, "1200": 0.2}, "forward_energy": {"1410": 30.0, "1200": 25.0},
        "backward_time": {"1410": 0.2}, "backward_energy": {"1410": 60.0},
    }  # fmt: skip


def test_ranks_of_one_stage_merge_to_their_median() -> None:
    text = json.dumps([rank_result(0, 0, 0.1), rank_result(1, 0, 0.3), rank_result(2, 1)])
    profile = read_offline(text, "zeus.json")
    assert profile.stages == 2
    assert profile.choices[0, "forward"] == (Choice(1410, 0.2, 30.0), Choice(1200, 0.2, 25.0))
    assert profile.choices[1, "backward"] == (Choice(1410, 0.2, 60.0),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"forward_time": {"1410": -1.0}}, "zeus.json: 0.forward_time.1410"),
        ({"forward_time": {"abc": 1.0}}, "zeus.json: 0.forward_time.abc"),
        ({"backward_energy": {"1200": 1.0}}, "backward has only a time or only an energy at 1200 MHz"),
        ({"pp_rank": 3}, "stage 0 is missing"),
        ({"pp_rank": None}, "zeus.json: 0.pp_rank"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(StageProfileError, match=said):
        read_offline(json.dumps([rank_result(0, 0) | change]), "zeus.json")


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", "[{}]", "[NaN]", "null"])
def test_other_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(StageProfileError, match=r"zeus\.json") as error:
        read_offline(text, "zeus.json")
    assert "\n" not in str(error.value)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Two stages, two micro-batches, two iterations under each of two schedules."""
    folder = tmp_path / "dump"
    folder.mkdir()
    (folder / "ranks.json").write_text(
        json.dumps([{"rank": r, "pp_rank": r, "available_frequencies": []} for r in (0, 1)])
    )
    for number, mhz in enumerate((1410, 1200)):
        steps = [["forward", mhz], ["backward", mhz], ["forward", mhz], ["backward", 1410]]
        times = {"forward": [[0.1, 0.3], [0.1, 0.3]], "backward": [[0.4, 0.2], [0.4, 0.2]], "p2p": [[1.0], [1.0]]}
        energies = {name: [[10 * t for t in row] for row in rows] for name, rows in times.items()}
        results = [
            {"rank": r, "iter_time": [], "iter_energy": [], "time_breakdown": times, "energy_breakdown": energies}
            for r in (0, 1)
        ]
        (folder / f"{number}.prof.json").write_text(json.dumps(results))
        (folder / f"{number}.sched.json").write_text(json.dumps([{"rank": r, "frequencies": steps} for r in (0, 1)]))
    return folder


def test_every_computation_of_a_dump_counts_at_the_clock_of_its_schedule(dump: Path) -> None:
    profile = read_profile_file(dump)
    assert [c.freq_mhz for c in profile.choices[0, "forward"]] == [1410, 1200]
    assert [c.time_s for c in profile.choices[0, "forward"]] == pytest.approx([0.2, 0.2])
    backward = profile.choices[1, "backward"]
    assert [(c.freq_mhz, c.time_s, c.energy_j) for c in backward] == [
        (1410, pytest.approx(0.8 / 3), pytest.approx(8 / 3)),
        (1200, pytest.approx(0.4), pytest.approx(4.0)),
    ]
    assert read_profile_file(dump / "0.prof.json").choices[0, "forward"][0].freq_mhz == 1410


@pytest.mark.parametrize("missing", ["ranks.json", "0.sched.json"])
def test_a_dump_without_a_file_names_it(dump: Path, missing: str) -> None:
    (dump / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        read_profile_file(dump)


def test_a_dump_whose_schedule_has_other_computations_is_refused(dump: Path) -> None:
    schedules = json.loads((dump / "1.sched.json").read_text())
    schedules[1]["frequencies"].pop()
    (dump / "1.sched.json").write_text(json.dumps(schedules))
    with pytest.raises(
        StageProfileError, match=r"1\.prof\.json: rank 1, backward, iteration 0: 2 times, 2 energies, 1 clocks"
    ):
        read_profile_file(dump)


def test_a_folder_without_dumps_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no N\.prof\.json"):
        read_profile_file(tmp_path)


def test_power_limits_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match="stage 0 has a power limit, 250 W"):
        point_solution([[ScheduledStep("forward", 0, 0, 0, 250)]])
