"""Inputs that users have: read, or refused in one line with exit code 2; no traceback, no half-written file."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tests_support import DATA, ROOT

from wattray import cli
from wattray.cli_lazy import COMMANDS

ROWS = "".join(f"2023-11-16 18:15:{46 + n % 10}.6805900,{300 + n},{20 + n}\n" for n in range(10))
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + ROWS
STAGES = "stage,instruction,frequency,time,energy\n" + "".join(
    f"{stage},{name},{mhz},{0.1 * 1400 / mhz:.4f},{30 * mhz / 1400:.3f}\n"
    for stage in range(2)
    for name in ("forward", "backward")
    for mhz in (1400, 1000)
)
PROFILE = {
    "schema": "wattray-profile/1",
    "name": "mine",
    "gpu": {"name": "X100", "idle_w": 84, "context_w": 127, "power_limit_w": 700},
    "freqs_mhz": [1980],
    "replicas": [{"tp": 1, "kv_tokens": 8000}],
    "shapes": [
        {
            "tp": 1,
            "freq_mhz": 1980,
            "points": [{"tokens": 1, "iteration_ms": 6.0}, {"tokens": 2048, "iteration_ms": 60}],
        }
    ],
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`wattray WORDS…` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wattray", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        told = capsys.readouterr()
        return int(stop.value.code or 0), told.out, told.err

    return command


def one_line(code: int, error: str, *parts: str) -> None:
    assert code == 2, error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["simulate"], "Missing option '--trace'"),
        (["simulate", "--trace", "x", "--scale", "abc"], "--scale"),
        (["--foo"], "No such option"),
        (["simulat"], "simulate"),
        (["frontier"], "Missing option"),
        (["profile", "import", "dynamo"], "Missing"),
    ],
)
def test_a_wrong_command_line_is_usage_and_one_line(run: Run, words: list[str], told: str) -> None:
    code, _, error = run(*words)
    assert code == 2
    assert "Usage:" in error
    assert told in error
    assert "Traceback" not in error


def test_bare_wattray_prints_its_help(run: Run) -> None:
    code, out, error = run()
    assert code in (0, 2)
    assert "simulate" in out + error


def test_the_help_is_there_at_once_and_through_a_pipe() -> None:
    done = subprocess.run([sys.executable, "-m", "wattray", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    code = "import sys, wattray.cli\ntry: wattray.cli.app(['--help'])\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"ray", "torch", "numba", "plotly", "scipy", "numpy", "pydantic"}.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_of_the_list_has_a_help_of_its_own(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "wattray", name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert COMMANDS[name].told.split(",")[0][:25] in done.stdout or name == "gpud"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", AZURE + "2023-11-16 18:15:57.0,3,74,20\n", "t.csv:12: 4 fields where the header has 3"),
        ("t.csv", AZURE.replace(",300,", ",3_00,"), "t.csv:2: ContextTokens '3_00' is not an integer"),
        ("t.csv", AZURE.replace(",300,", ",\u0663\u0660,"), "t.csv:2: ContextTokens"),
        ("t.csv", AZURE.replace("18:15:46", "18:15:4\u00b2", 1), "t.csv:2: TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n", "ContextTokens is there twice"),
        ("[/v2].csv", AZURE.replace(",300,", ",[/],"), "[/v2].csv:2: ContextTokens '[/]'"),
        ("t.jsonl", '[{"timestamp": 1}]\n', "t.jsonl:1: this is one JSON array"),
        ("t.jsonl", "[" * 5000 + "\n", "t.jsonl:1:"),
        ("t.jsonl", '{"a":' * 5000 + "\n", "t.jsonl:1: nested too deeply"),
        ("t.jsonl", '{"timestamp": NaN, "input_length": 3, "output_length": 3}\n', "t.jsonl:1: not JSON: NaN"),
        ("t.jsonl", '{"timestamp": 1, "input_length": 3.0, "output_length": 3}\n', "t.jsonl:1: input_length 3.0"),
        ("t.jsonl", '{"timestamp": 0.5, "input_length": 3, "output_length": 3}\n', "say --time-unit s"),
        ("t.csv", "time_utc,rpm_mid\n2024-01-01 00:00:00,60\n2024-12-01 00:00:00,60\n", "100 days"),
        ("t.csv", "time_utc,rpm_mid\n2024-01-01 00:00:00,1e15\n2024-01-02 00:00:00,1e15\n", "at most 200,000,000"),
        ("t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n-1,3,3\n", "t.csv:2: arrived_at '-1'"),
    ],
)  # fmt: skip
def test_a_trace_that_cannot_be_used_is_one_line(run: Run, tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    code, _, error = run("bound", "--trace", path)
    one_line(code, error, told)


@pytest.mark.parametrize("damage", ["crc", "flipped", "cut", "trailing"])
def test_a_damaged_gzip_file_is_one_line(run: Run, tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(AZURE.encode())
    broken = {
        "crc": whole[:-8] + b"\1\2\3\4" + whole[-4:],
        "flipped": whole[:14] + bytes(255 - byte for byte in whole[14:40]) + whole[40:],
        "cut": whole[: len(whole) // 2],
        "trailing": whole + b"trailing words",
    }[damage]
    path = tmp_path / "t.csv.gz"
    path.write_bytes(broken)
    code, _, error = run("bound", "--trace", path)
    one_line(code, error, "t.csv.gz: the gzip file is damaged")


def bound_of(run: Run, tmp_path: Path, trace: Path, *more: str) -> dict[str, float]:
    out = tmp_path / "bound.json"
    code, _, error = run("bound", "--trace", trace, "--json", out, *more)
    assert code == 0, error
    content: dict[str, float] = json.loads(out.read_text())
    return content


def test_gzip_members_zeros_long_columns_and_other_tools_formats_are_read(run: Run, tmp_path: Path) -> None:
    plain = tmp_path / "t.csv"
    plain.write_text(AZURE)
    expected = bound_of(run, tmp_path, plain)
    head, tail = AZURE[:200].encode(), AZURE[200:].encode()
    (tmp_path / "two.csv.gz").write_bytes(gzip.compress(head) + gzip.compress(tail) + b"\0" * 512)
    assert bound_of(run, tmp_path, tmp_path / "two.csv.gz") == expected
    prompt = "x" * 200_000
    longer = [f"{line},{prompt if number else 'prompt'}" for number, line in enumerate(AZURE.splitlines())]
    (tmp_path / "wide.csv").write_text("\n".join(longer))
    assert bound_of(run, tmp_path, tmp_path / "wide.csv") == expected


def test_seconds_and_milliseconds_give_the_same_figures(run: Run, tmp_path: Path) -> None:
    for name, times in (("s.jsonl", [0.5, 2.25]), ("ms.jsonl", [500, 2250])):
        rows = [json.dumps({"timestamp": at, "input_length": 300, "output_length": 20}) for at in times]
        (tmp_path / name).write_text("\n".join(rows))
    seconds = bound_of(run, tmp_path, tmp_path / "s.jsonl", "--time-unit", "s")
    assert seconds == bound_of(run, tmp_path, tmp_path / "ms.jsonl")
    code, _, error = run("bound", "--trace", tmp_path / "s.jsonl", "--time-unit", "h")
    one_line(code, error, "--time-unit 'h'")


def test_failed_requests_are_skipped_and_counted(run: Run, tmp_path: Path) -> None:
    burst = tmp_path / "burst.csv"
    burst.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    )
    code, _, error = run("bound", "--trace", burst)
    assert code == 0, error
    assert "1 failed requests without an answer are left out (lines 3)" in error
    vidur = tmp_path / "vidur.csv"
    vidur.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,4808,10\n0.052,3180,8\n")
    assert bound_of(run, tmp_path, vidur)["requests"] == 2


def test_requests_that_no_replica_can_hold_are_told_apart(run: Run, tmp_path: Path) -> None:
    profile = tmp_path / "small.json"
    profile.write_text(json.dumps(PROFILE))
    rows = [{"timestamp": 1000 * n, "input_length": 300 if n else 9000, "output_length": 20} for n in range(5)]
    trace = tmp_path / "t.jsonl"
    trace.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.json"
    code, _, error = run("simulate", "--trace", trace, "--profile", profile, "--policies", "single-pool", "--json", out)
    assert code == 0, error
    assert "1 requests are longer than any replica's KV cache (8,000 tokens)" in error
    assert json.loads(out.read_text())["simulator"]["requests"] == 4
    assert bound_of(run, tmp_path, trace, "--profile", str(profile))["requests"] == 4
    trace.write_text(json.dumps(rows[0]))
    code, _, error = run("bound", "--trace", trace, "--profile", profile)
    one_line(code, error, "no request fits any replica")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace('"name"', '"freqs_mhz": [1], "name"', 1), "is there twice"),
        (lambda text: text.replace("6.0", "0.006"), "is it in seconds?"),
        (lambda text: text.replace("6.0", "NaN"), "not JSON: NaN"),
        (lambda text: text.replace("8000", "1e400"), "kv_tokens"),
        (lambda text: text[:-1] + ', "batch_requests": 1000000000000}', "batch_requests"),
        (lambda text: "[" * 3000, "nested too deeply"),
        (lambda text: '{"a":' * 3000, "nested too deeply"),
        (lambda text: text.replace("mine", "mi\\u0000ne"), "NUL"),
        (lambda text: text.replace("X100", "X\\ud83d"), "half a character"),
        (lambda text: "name: 2023-13-45", "date"),
    ],
)
def test_a_profile_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    path = tmp_path / "p.json"
    path.write_text(change(json.dumps(PROFILE)))
    code, _, error = run("profile", "show", path)
    one_line(code, error, "p.json", told)


@pytest.mark.parametrize("content", ["é".encode("latin-1"), "x: 1".encode("utf-16"), b"a\0b"])
def test_a_profile_in_another_encoding_is_one_line(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    code, _, error = run("profile", "show", path)
    one_line(code, error, "p.json")


def test_json_is_json_with_tabs_exponents_marks_and_markup(run: Run, tmp_path: Path) -> None:
    text = json.dumps(PROFILE, indent="\t").replace("2048", "2.048e3", 1).replace("X100", "[/v2] \U0001f600")
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, out, error = run("profile", "show", tmp_path / "p.json")
    assert code == 0, error
    assert "[/v2]" in out


def test_a_profiles_own_limits_hold_in_every_command(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(AZURE)
    tight = {**PROFILE, "slo": {"ttft_short_s": 0.002, "ttft_medium_s": 0.002, "ttft_long_s": 0.002, "tbt_s": 0.1}}
    (tmp_path / "tight.json").write_text(json.dumps(tight))
    code, out, _ = run("profile", "show", tmp_path / "tight.json", "--json")
    assert code == 0
    assert json.loads(out)["slo"]["ttft_short_s"] == 0.002
    code, _, error = run("simulate", "--trace", trace, "--profile", tmp_path / "tight.json")
    one_line(code, error, "break their SLO")
    code, _, error = run("simulate", "--trace", trace, "--profile", tmp_path / "tight.json", "--slo", "ttft=5")
    assert code == 0, error


@pytest.mark.parametrize("text", ["ttft", "ttft=x", "ttft=-1", "ttft=nan", "colour=1", "tbt=0"])
def test_limits_that_are_none_are_one_line(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    code, _, error = run("bound", "--trace", tmp_path / "t.csv", "--slo", text)
    one_line(code, error, "--slo")
    code, _, error = run("bound", "--trace", tmp_path / "t.csv", "--attainment", "1.5")
    one_line(code, error, "--attainment")


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([[["forward", 0.5]], []], "micro-batch 0.5"),
        ([[["forward", None]]], "micro-batch None"),
        ([[["forward", True]]], "micro-batch True"),
        ([[["forward", "0"]]], "micro-batch '0'"),
        ([[["forward", -1]]], "micro-batch -1"),
        ({"0": []}, "expected one list per stage"),
        ([{"instruction": "forward"}], "expected one list per stage"),
        ([[["forward", 0]], []], "stage 1 runs nothing"),
        ([[[["forward"], 0]]], "position 0"),
    ],
)  # fmt: skip
def test_an_order_that_is_none_is_one_line(run: Run, tmp_path: Path, order: object, told: str) -> None:
    (tmp_path / "train.csv").write_text(STAGES)
    (tmp_path / "order.json").write_text(json.dumps(order))
    code, _, error = frontier(run, tmp_path, "--schedule", tmp_path / "order.json")
    one_line(code, error, "order.json", told)


def frontier(run: Run, folder: Path, *more: object) -> tuple[int, str, str]:
    words = ["--stages", 2, "--microbatches", 2, "--blocking-power-w", 60]
    return run("frontier", "--profile", folder / "train.csv", *words, *more)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("1400,", "1.4e9,", 1), "row 2, column frequency"),
        (lambda text: text.replace("0.1000", "1e308", 1), "row 2, column time"),
        (lambda text: text.replace("0.1000", "１", 1), "row 2, column time"),
        (lambda text: text.replace("forward", "[/x]", 1), "[/x]"),
    ],
)
def test_a_stage_profile_that_cannot_be_used_is_one_line(
    run: Run, tmp_path: Path, change: Callable[[str], str], told: str
) -> None:
    (tmp_path / "train.csv").write_text(change(STAGES))
    code, _, error = frontier(run, tmp_path)
    one_line(code, error, told)


def test_stragglers_that_are_none_and_units_that_look_wrong_are_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(STAGES)
    for straggler in ("inf", "nan", "0.5"):
        code, _, error = frontier(run, tmp_path, "--straggler", straggler)
        one_line(code, error, "--straggler")
    milli = [",".join([*row.split(",")[:3], "100", "30"]) for row in STAGES.splitlines()[1:]]
    (tmp_path / "train.csv").write_text("\n".join([STAGES.splitlines()[0], *milli]))
    code, _, error = frontier(run, tmp_path)
    one_line(code, error, "below the blocking power")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"serve: {port: 1}\nserve: {port: 2}\n", "line 2: 'serve' is there twice"),
        (b"serve:\n\tport: 1\n", "line 2: not YAML"),
        (b"profile: 2023-13-45\n", "date"),
        (b"profile: M\xfcller\n", "not UTF-8"),
        (b"profile: a\0b\n", "NUL"),
        (b"- 1\n", "expected a mapping"),
        (b"serve: 5\n", "serve"),
        (b"[" * 3000, "nested too deeply"),
        (b"1: 2\n", "no name of a setting"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(run: Run, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    for command in ("up", "demo"):
        code, _, error = run(command, "--config", tmp_path / "c.yaml")
        one_line(code, error, "c.yaml", told)


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    from control_plane.settings import Settings
    from wattray.config_file import read_settings

    (tmp_path / "c.yaml").write_text("serve:\ntraining:\ngpu: {count: 8}\n")
    read = read_settings(tmp_path / "c.yaml", 9000)
    assert read.serve == Settings().serve.model_copy(update={"port": 9000})
    assert (read.training, read.gpu.count) == (Settings().training, 8)


def test_engine_and_gpus_of_the_command_line_override_the_file(tmp_path: Path) -> None:
    from wattray.config_file import read_settings

    (tmp_path / "c.yaml").write_text("serve: {engine: simulated, port: 7000}\ngpu: {count: 16}\n")
    read = read_settings(tmp_path / "c.yaml", engine="transformers", gpus=4)
    assert (read.serve.engine, read.serve.port, read.gpu.count) == ("transformers", 7000, 4)
    assert read_settings(tmp_path / "c.yaml").gpu.count == 16


def test_an_engine_that_cannot_run_is_refused_before_anything_starts(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(words: list[object], *parts: str) -> None:
        code, _, error = run("up", *words)
        one_line(code, error, *parts)

    config = tmp_path / "c.yaml"
    config.write_text(f"serve: {{model_path: {tmp_path}}}\n")
    refused(["--engine", "magic"], "serve.engine", "magic")
    refused(["--config", config], "serve.model_path", "runs no model")
    with monkeypatch.context() as absent:
        absent.setattr("importlib.util.find_spec", lambda name: None)
        refused(["--engine", "transformers"], "not installed", "pip install 'wattray[transformers]'")
    pytest.importorskip("transformers")
    refused(["--engine", "transformers", "--config", config], "serve.model_path", "tokenizer.json")


OUTPUTS = [("bound", "--json"), ("simulate", "--json"), ("simulate", "--report")]


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_outputs_that_cannot_be_written_are_told_before_the_run(
    run: Run, tmp_path: Path, command: str, option: str
) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    for path in (tmp_path / "missing" / "out", tmp_path):
        code, out, error = run(command, "--trace", tmp_path / "t.csv", option, path)
        one_line(code, error, option, str(path))
        assert out == ""


def test_links_and_pipes_are_written_through_and_old_files_stay_whole(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(AZURE)
    target, link = tmp_path / "kept.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run("bound", "--trace", tmp_path / "t.csv", "--json", link)[0] == 0
    assert link.is_symlink()
    assert "bound_energy_j" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o640
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        assert run("bound", "--trace", tmp_path / "t.csv", "--json", pipe)[0] == 0
        assert "bound_energy_j" in reader.communicate(timeout=10)[0]
    assert pipe.is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "link.json", "pipe", "t.csv"]


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    from wattray.errors import WattrayError
    from wattray.output_files import write_text

    (tmp_path / "out.json").write_text("old")
    with pytest.raises(WattrayError, match="No space left"):
        write_text(Path("/dev/full"), "x" * 100_000)
    tmp_path.chmod(0o700)
    assert (tmp_path / "out.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_json_never_holds_what_is_no_number() -> None:
    from wattray.output_files import json_text

    text = json_text({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


mutations = st.lists(
    st.tuples(
        st.integers(0, 400), st.sampled_from([b"\0", b",", b"\n", b'"', b"\xff", b"nan", b"-", b"1e9", b"[", b""])
    ),
    max_size=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutations, st.sampled_from(["t.csv", "t.jsonl", "p.json", "train.csv"]))
def test_mutated_files_are_read_or_refused_with_the_readers_own_error(
    tmp_path: Path, changes: list[tuple[int, bytes]], name: str
) -> None:
    from control_plane.hardware.profile_file import ProfileError
    from control_plane.simulation.traces import TraceError
    from control_plane.training.profile import StageProfileError, read_profile
    from wattray.profile_files import profile_named
    from wattray.trace_files import TraceRequest, load_trace

    good = {
        "t.csv": AZURE,
        "t.jsonl": '{"timestamp": 5, "input_length": 3, "output_length": 3}\n' * 4,
        "p.json": json.dumps(PROFILE),
        "train.csv": STAGES,
    }[name].encode()
    for at, piece in changes:
        good = good[:at] + piece + good[at + 1 :]
    path = tmp_path / name
    path.write_bytes(good)
    try:
        if name.startswith("t."):
            assert len(load_trace(TraceRequest(str(path)), []))
        elif name == "p.json":
            assert profile_named(str(path)).tps
        else:
            assert read_profile(good.decode("utf-8", "replace")).stages
    except (TraceError, ProfileError, StageProfileError):
        event("refused")


def test_every_case_that_users_have_brought_is_read_or_one_line(run: Run) -> None:
    cases = DATA.parent / "cases"
    if not cases.is_dir():
        pytest.skip("the shared cases are not here")
    looked = 0
    for folder in (
        "gzip",
        "superscript",
        "mooncake-array",
        "mooncake-float",
        "thousands",
        "decimal-comma",
        "azure2024",
    ):
        for path in sorted((cases / folder).iterdir()):
            code, _, error = run("bound", "--trace", path)
            assert code in (0, 2), (path, error)
            if code == 2:
                one_line(code, error, path.name)
            looked += 1
    for path in sorted((cases / "profile").iterdir()):
        code, _, error = run("profile", "show", path)
        assert code in (0, 2), (path, error)
        if code == 2:
            one_line(code, error, path.name)
        looked += 1
    assert looked > 40
