"""`wattray allocate` as a person runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wattray.cli_allocate import app


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_the_same_load_in_three_formats_gives_one_allocation(tmp_path: Path) -> None:
    pools = [{"type": "SS", "rps": 2}, {"type": "LM", "rps": 1.5, "input_tokens": 2500, "tbt_s": 0.08}]
    (tmp_path / "load.json").write_text(json.dumps({"pools": pools}))
    (tmp_path / "load.yaml").write_text(
        "- {type: SS, rps: 2}\n- {type: LM, rps: 1.5, input_tokens: 2500, tbt_s: 0.08}\n"
    )
    (tmp_path / "load.csv").write_text("rps,type,input_tokens,tbt_s\n2,SS,,\n1.5,LM,2500,0.08\n")
    found = []
    for name in ("load.json", "load.yaml", "load.csv"):
        code, text = invoke("--gpus", 32, "--load", tmp_path / name, "--json", tmp_path / "out.json")
        assert code == 0, text
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["feasible"]
        assert {pool for line in report["instances"] for pool in line["pools"]} == {"SS", "LM"}
        assert all(line["slo_slack_ratio"] >= -1e-6 for line in report["instances"])
        assert 0 < report["lower_bound_w"] <= report["power_w"] * (1 + 1e-9)
        found.append((report["instances"], report["power_w"]))
    assert found[0] == found[1] == found[2]


def test_a_load_that_does_not_fit_is_served_in_part_and_said(tmp_path: Path) -> None:
    load = tmp_path / "load.csv"
    load.write_text("type,rps\nLL,40\n")
    code, text = invoke("--gpus", 8, "--load", load, "--json", tmp_path / "out.json")
    assert code == 0
    assert "too few for pools LL" in text
    report = json.loads((tmp_path / "out.json").read_text())
    assert not report["feasible"]
    assert 0 < report["shortfalls"][0]["served_ratio"] < 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- {type: XX, rps: 1}", "request type 'XX' is not one of"),
        ("- {type: SS}", "rps is missing"),
        ("- {type: SS, rps: -1}", "rps -1 must be at least 0"),
        ("- {type: SS, rps: .nan}", "rps nan is not a number"),
        ("- {type: SS, rps: 1, input_tokens: 5000}", "input_tokens 5000 are none of type SS"),
        ("- {type: SS, rps: 1, colour: red}", "unknown field 'colour'"),
        ("- {type: SS, rps: 1}\n- {type: SS, rps: 2}", "type SS is there twice"),
        ("- {type: SS, rps: 0}", "no pool has a load"),
        ("just words", "expected a list of pools"),
    ],
)
def test_what_is_no_load_is_one_line_and_exit_code_2(tmp_path: Path, content: str, told: str) -> None:
    load = tmp_path / "load.yaml"
    load.write_text(content)
    code, text = invoke("--gpus", 8, "--load", load)
    assert code == 2
    assert told in text


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    code, text = invoke("--gpus", 8, "--load", tmp_path / "none.yaml")
    assert code == 2
    assert "No such file" in text
