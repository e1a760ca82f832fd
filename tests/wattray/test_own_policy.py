"""A user's own policy: the guide's example runs, and what goes wrong in one names the policy and the moment."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.serving.policies import own, registry
from control_plane.simulation.policies import policy_names
from wattray.cli_simulate import app

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "examples" / "by_queue.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for module in ("by_queue", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "by_queue.py").write_text(EXAMPLE.read_text())
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["simulate", "--trace", "synthetic:conv", "--hours", "0.03", *words])
    return result.exit_code, " ".join(result.output.split())


def test_the_guides_command_runs_its_example(here: Path) -> None:
    guide = (DOCS / "own_policy.md").read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    example = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0]
    assert example.strip() in EXAMPLE.read_text()
    command = re.findall(r"^wattray (simulate .*)$", guide, re.MULTILINE)[0].split()
    result = CliRunner().invoke(app, [*command, "--json", "out.json", "--run", "kept"])
    assert result.exit_code == 0, result.output
    policies = json.loads((here / "out.json").read_text())["policies"]
    ours = policies["by_queue:ByQueue"]
    assert ours["lost"] == 0
    assert ours["energy_j"] > 0
    assert (here / "kept" / "by_queue.ByQueue-decisions.jsonl").exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "if queue.queued else",
            "if queue.decoding / 0 else",
            "governor.look at .* s: ZeroDivisionError: .*by_queue.py:",
        ),
        (
            "return self._full if queue.queued else self._low",
            "return None",
            "governor.look at .* answered None; expected int",
        ),
        (
            "replicas=site.gpus // 8",
            "replicas=site.gpu // 8",
            "being built for 16 GPUs: AttributeError: .*by_queue.py:8",
        ),
        ("class ByQueue(SinglePoolPolicy)", "class ByQueue", "being built for 16 GPUs: TypeError"),
        ("class ByQueue", "class Other", "AttributeError: module 'by_queue' has no attribute 'ByQueue'"),
        ("from control_plane", "from nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_an_error_names_the_policy_the_part_and_the_moment(here: Path, old: str, new: str, told: str) -> None:
    text = EXAMPLE.read_text()
    assert old in text
    (here / "by_queue.py").write_text(text.replace(old, new))
    code, output = run("--policies", "by_queue:ByQueue", "--gpus", "16")
    assert code == 2, output
    assert re.search("error: policy by_queue:ByQueue,? ?.*" + told, output), output


class Point:
    name, value = "mine", "by_queue:ByQueue"

    def load(self) -> object:
        return registry.POLICIES["single-pool"]


class Points(list[Point]):
    names = ("mine",)


def test_a_registered_policy_has_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "entry_points", lambda group: Points([Point()]) if group == own.GROUP else Points())
    assert "mine" in policy_names()
    code, output = run("--policies", "mine", "--gpus", "16")
    assert code == 0, output
    assert "mine" in output
    assert run("--policies", "mime")[1].startswith("error: unknown policy 'mime' (did you mean mine?)")
