"""`wattray frontier` writes what it says, or nothing and why."""

import ast
import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from training.profiles_for_tests import measured_csv, synthetic_profile
from typer.testing import CliRunner

from wattray.cli_frontier import frontier_command

KEYS = {
    "t_min_s",
    "t_star_s",
    "all_max_time_s",
    "all_max_energy_j",
    "saved_at_t_min_ratio",
    "breakpoints",
    "shown",
    "t_star_energy_j",
    "solve_s",
    "points",
    "plan",
}


def run(*arguments: object):  # type: ignore[no-untyped-def]
    app = typer.Typer()
    app.command("frontier")(frontier_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def profile_csv(tmp_path: Path) -> Path:
    rows = [
        f"{stage},{instruction},{c.freq_mhz},{c.time_s},{c.energy_j}"
        for (stage, instruction), choices in synthetic_profile(3).choices.items()
        for c in choices
    ]
    path = tmp_path / "profile.csv"
    path.write_text("\n".join(["stage,instruction,frequency,time,energy", *rows]) + "\n")
    return path


def test_json_has_the_promised_keys_and_the_plan_every_computation(profile_csv: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    options = ["--profile", profile_csv, "--schedule", "1f1b", "--stages", 3, "--microbatches", 5]
    done = run(*options, "--blocking-power-w", 50, "--straggler", 1.2, "--json", out, "--plot", page)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert set(report) == KEYS | {"straggler_time_s", "straggler_energy_j", "saved_ratio"}
    assert len(report["points"]) == 25
    assert report["points"][0]["iteration_time_s"] == report["t_min_s"]
    for point in report["points"]:
        assert point["finish_time_s"] <= point["iteration_time_s"]
        assert point["energy_j"] >= point["lower_bound_j"] * (1 - 1e-9)
    assert len(report["plan"]) == 3 * 2 * 5
    assert set(report["plan"][0]) == {"stage", "instruction", "microbatch", "freq_mhz"}
    assert page.stat().st_size < 1_000_000
    assert 'src="plotly.min.js"' in page.read_text()
    assert "Plotly" in (tmp_path / "plotly.min.js").read_text()


def test_measured_profile_at_full_scale(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(
        "--profile", measured_csv("gpt3-175b+a100_sxm_bf16"), "--stages", 8, "--microbatches", 12,
        "--blocking-power-w", 83.64, "--gpus-per-stage", 8, "--time-scale", 10, "--energy-scale", 10, "--json", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["t_min_s"] == pytest.approx(28.365, abs=0.001)
    assert report["saved_at_t_min_ratio"] > 0.152


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--microbatches", 0], "microbatches must be at least 1, got 0"),
        (["--stages", 4], "add --resample"),
        (["--schedule", "2f2b"], "unknown schedule '2f2b'"),
        (["--straggler", 0.9], "T_min"),
        (["--blocking-power-w", "nan"], "blocking_power_w must be finite"),
        (["--time-scale", 0], "time scale must be positive"),
        (["--schedule", "interleaved-1f1b", "--chunks", 2], "groups of 3, got 5"),
    ],
)
def test_bad_options_say_what_is_wrong_and_write_nothing(
    profile_csv: Path, tmp_path: Path, options: list[object], said: str
) -> None:
    good = {
        "--profile": profile_csv,
        "--stages": 3,
        "--microbatches": 5,
        "--blocking-power-w": 50,
        "--json": tmp_path / "out.json",
        "--plot": tmp_path / "out.html",
    }
    good.update(zip(options[::2], options[1::2], strict=True))
    done = run(*(part for pair in good.items() for part in pair))
    assert done.exit_code == 2
    assert said in done.output
    assert list(tmp_path.iterdir()) == [profile_csv]


def test_a_bad_row_is_named_and_nothing_written(profile_csv: Path, tmp_path: Path) -> None:
    profile_csv.write_text(profile_csv.read_text() + "0,forward,500,nan,1\n")
    out = tmp_path / "out.json"
    done = run("--profile", profile_csv, "--stages", 3, "--microbatches", 5, "--blocking-power-w", 50, "--json", out)
    assert done.exit_code == 2
    assert "column time" in done.output
    assert not out.exists()


def test_a_users_order_with_a_cycle_is_refused(profile_csv: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(json.dumps([[["backward", 0], ["forward", 0]]] + [[["forward", 0], ["backward", 0]]] * 2))
    done = run(
        "--profile", profile_csv, "--schedule", order, "--stages", 3, "--microbatches", 1, "--blocking-power-w", 50
    )
    assert done.exit_code == 2
    assert "cycle" in done.output


def job_options(profile: Path) -> list[object]:
    return ["--profile", profile, "--stages", 3, "--microbatches", 5, "--blocking-power-w", 50]


def test_plans_by_deadlines_hold_their_clocks_and_end_in_time(profile_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    switching = ["--switch-time-s", 0.2, "--min-hold-s", 3.5]
    done = run(*job_options(profile_csv), *switching, "--deadline-s", 32, "--deadline-s", 36, "--json", out)
    assert done.exit_code == 0, done.output
    plans = json.loads(out.read_text())["plans_at"]
    assert [plan["deadline_s"] for plan in plans] == [32, 36]
    for plan in plans:
        assert set(plan) == {
            "deadline_s", "finish_time_s", "energy_j", "lower_bound_j", "saved_ratio", "switches", "shortest_hold_s",
        }  # fmt: skip
        assert plan["finish_time_s"] <= plan["deadline_s"]
        assert plan["lower_bound_j"] <= plan["energy_j"]
        assert plan["switches"] == 0 or plan["shortest_hold_s"] >= 3.5
    assert plans[0]["saved_ratio"] < plans[1]["saved_ratio"]


def test_one_clock_per_stage_never_switches_and_holds_for_ever(profile_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(*job_options(profile_csv), "--clocks-per-stage", 1, "--deadline-s", 36, "--baselines", "--json", out)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert (report["plans_at"][0]["switches"], report["plans_at"][0]["shortest_hold_s"]) == (0, None)
    assert len({step["freq_mhz"] for step in report["plan"] if step["stage"] == 1}) == 1
    assert set(report["baselines"]) == {"zeus_global", "zeus_stage", "envpipe"}
    for other in report["baselines"].values():
        assert set(other) == {"finish_time_s", "energy_j", "saved_ratio"}


def test_a_prepared_library_is_asked_for_and_no_dearer(profile_csv: Path, tmp_path: Path) -> None:
    energies_j = []
    for options in ([], ["--prepare"]):
        out = tmp_path / "out.json"
        assert run(*job_options(profile_csv), "--deadline-s", 34, "--json", out, *options).exit_code == 0
        energies_j.append(json.loads(out.read_text())["plans_at"][0]["energy_j"])
    assert energies_j[1] <= energies_j[0]


def test_the_plan_is_written_as_zeus_reads_it(profile_csv: Path, tmp_path: Path) -> None:
    out, schedule = tmp_path / "out.json", tmp_path / "plan.py"
    done = run(*job_options(profile_csv), "--deadline-s", 34, "--json", out, "--export-zeus", schedule)
    assert done.exit_code == 0, done.output
    ranks = ast.literal_eval(schedule.read_text())
    plan = json.loads(out.read_text())["plan"]
    assert [(s, *step) for s, steps in enumerate(ranks) for step in steps] == [
        (step["stage"], step["instruction"], step["freq_mhz"]) for step in plan
    ]


def test_a_profile_of_zeus_gives_what_its_csv_gives(profile_csv: Path, tmp_path: Path) -> None:
    choices = synthetic_profile(3).choices
    results = [
        {
            "rank": stage, "dp_rank": 0, "pp_rank": stage, "tp_rank": 0,
            **{
                f"{name}_{what}": {str(c.freq_mhz): getattr(c, field) for c in choices[stage, name]}
                for name in ("forward", "backward")
                for what, field in (("time", "time_s"), ("energy", "energy_j"))
            },
        }
        for stage in range(3)
    ]  # fmt: skip
    offline = tmp_path / "offline.json"
    offline.write_text(json.dumps(results))
    reports = []
    for profile in (profile_csv, offline):
        out = tmp_path / "out.json"
        assert run(*job_options(profile), "--json", out).exit_code == 0
        reports.append({**json.loads(out.read_text()), "solve_s": 0.0})
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--deadline-s", 1], "under T_min"),
        (["--deadline-s", "nan"], "--deadline-s nan: must be positive and finite"),
        (["--switch-time-s", -1], "switch_time_s must be finite and not negative"),
        (["--min-hold-s", "inf"], "min_hold_s must be finite"),
        (["--clocks-per-stage", -2], "clocks_per_stage must be 0"),
        (["--time-budget-s", 0], "must be positive"),
        (["--export-zeus", "plan.json"], "ends in .py"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(profile_csv: Path, options: list[object], said: str) -> None:
    done = run(*job_options(profile_csv), *options)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_a_walk_that_takes_too_long_is_given_up_with_what_is_known(profile_csv: Path) -> None:
    done = run(*job_options(profile_csv), "--time-budget-s", 1e-9)
    assert done.exit_code == 2
    assert "takes longer than" in done.output


EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "stage_profile.csv"


def test_the_documented_commands_run_on_the_example_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (EXAMPLE.parents[1] / "frontier.md").read_text()
    command = re.findall(r"^wattray frontier (--profile docs/examples.*)$", guide, re.MULTILINE)[0].split()
    command = [str(EXAMPLE) if word.startswith("docs/examples") else word for word in command]
    monkeypatch.chdir(tmp_path)
    done = run(*command, "--plot", "f.html", "--json", "out.json", "--figures", "figures")
    assert done.exit_code == 0, done.output
    assert "Zeus, one clock" in done.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert f"{report['t_star_energy_j']:,.0f}" in done.output
    assert report["straggler_energy_j"] == report["shown"]["energy_j"] < report["shown"]["all_max_energy_j"]
    drawn = ElementTree.parse(tmp_path / "f.svg").getroot()
    series = {group.get("id"): group for group in drawn.findall(".//{*}g")}
    assert len(series["plans with real clocks"].findall(".//{*}use")) == 25
    assert len(series["all clocks at maximum"].findall(".//{*}use")) == 1
    [bound] = [name for name in series if name is not None and name.startswith("lower bound")]
    assert len(series[bound].findall(".//{*}path")) == 1
    words = {"".join(text.itertext()).strip() for text in drawn.findall(".//{*}text")}
    assert {"T_min", "T*", "straggler", "iteration time [s]", "energy of all stages [J]"} <= words
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == [f"{name}.{ending}" for name in ("frontier", "gantt") for ending in ("csv", "pdf", "svg")]
    assert (tmp_path / "figures" / "gantt.pdf").read_bytes().startswith(b"%PDF-")
    # One number for one thing: the pictures' titles say what the table and the JSON say.
    titles = re.findall(r"([\d,]+) J until", (tmp_path / "figures" / "gantt.svg").read_text())
    shown = report["shown"]
    assert titles == [f"{shown['all_max_energy_j']:,.0f}", f"{shown['energy_j']:,.0f}"]
    assert all(title in " ".join(done.output.split()) for title in titles)
    points = list(csv.reader((tmp_path / "figures" / "frontier.csv").open()))
    planned = [(float(x), float(y)) for series, x, y, _ in points[1:] if series == "plans with real clocks"]
    assert planned == [(point["iteration_time_s"], point["energy_j"]) for point in report["points"]]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("time_ms", "time_s", "draws 0.*, below the blocking power of 50 W: a unit is probably wrong"),
        ("time_ms", "time_us", "above the most that its GPUs can draw, 3000 W"),
        ("energy_j", "energy_kj", "above the most that its GPUs can draw, 3000 W"),
    ],
)
def test_a_wrong_unit_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(EXAMPLE.read_text().replace(old, new))
    done = run("--profile", path, "--stages", 4, "--microbatches", 4, "--blocking-power-w", 50)
    assert done.exit_code == 2
    assert re.search(told, " ".join(done.output.split())), done.output
