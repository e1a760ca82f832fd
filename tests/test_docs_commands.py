"""Every command of the README and of docs/ runs here, or the page says above it what it needs that is not here.

A mark is an HTML comment before the block: `<!-- needs: a cluster -->`.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import ROOT
from typer.testing import CliRunner

from wattray.cli import app

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "own_policy.md")
"""Pages whose commands take seconds; `make soak` runs the others'."""
NEEDS = {
    "a cluster",
    "a GPU",
    "downloaded data",
    "files of Zeus",
    "minutes",
    "the extra profiles, or measured runs",
}
BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>.*?) -->\n\n)?^```(?:console|bash|sh)\n(?P<body>.*?)^```", re.M | re.S)
PROGRAMS = ("wattray ", "python ", "pip ", "torchrun ", "make ", "curl ", "ray ")


def commands(page: str) -> list[tuple[str | None, str]]:
    """(what it needs, command), continuation lines joined and comments left out."""
    found = []
    for block in BLOCK.finditer(page):
        body = re.sub(r"\\\n\s*", "", re.sub(r"\s+#.*$", "", block["body"], flags=re.M))
        found += [(block["needs"], line) for line in body.splitlines() if line.strip()]
    return found


def test_a_command_is_in_a_block_that_is_looked_at() -> None:
    for path in PAGES:
        outside = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
        loose = [line for line in outside.splitlines() if line.startswith(tuple("    " + name for name in PROGRAMS))]
        assert loose == [], path.name
        fences = re.findall(r"^```(.*)\n((?:.*\n)*?)^```", path.read_text(), re.M)
        unseen = [body for kind, body in fences if kind not in ("console", "bash", "sh") and body.startswith(PROGRAMS)]
        assert unseen == [], path.name
        assert {needs for needs, _ in commands(path.read_text())} <= NEEDS | {None}, path.name


def test_a_mark_stands_before_its_block_and_comments_are_left_out() -> None:
    page = "<!-- needs: a GPU -->\n\n```console\nwattray x \\\n    --y   # why\n```\n\n```console\nwattray z\n```\n"
    assert commands(page) == [("a GPU", "wattray x --y"), (None, "wattray z")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run: what the pages' users would have."""
    azure = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d},{200 + 37 * i % 2500},{10 + 7 * i % 200}" for i in range(120)]
    (tmp_path / "requests.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(azure) + "\n")
    own = [
        f"2024-05-01T00:{i // 60:02d}:{i % 60:02d},{'ab'[i % 2]},{300 + 7 * i % 3000},{20 + i % 90}" for i in range(120)
    ]
    (tmp_path / "log.csv").write_text("ts,team,prompt_tokens,completion_tokens\n" + "\n".join(own) + "\n")
    (tmp_path / "settings.yaml").write_text("gpu: {count: 64}\n")
    for module in (ROOT / "docs" / "examples").glob("*.py"):
        shutil.copy(module, tmp_path)
    (tmp_path / "mymodule.py").write_text("from by_queue import ByQueue as MyPolicy\n")
    for name in ("docs", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module_name in ("by_queue", "twelve_lines", "mymodule"):
        monkeypatch.delitem(sys.modules, module_name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path in SHORT else pytest.mark.soak, id=path.stem) for path in PAGES]
)
def test_the_commands_of_a_page_run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [command for needs, command in commands(path.read_text()) if needs is None]
    if not todo:
        pytest.skip("every command of it is marked, or it has none")
    if path.name == "what_if.md":
        shutil.copy(folder / "log.csv", folder / "requests.csv")
    for command in todo:
        program, *words = shlex.split(command)
        if program == "python":
            done = subprocess.run(
                [sys.executable, *words],
                env={"PYTHONPATH": str(ROOT), "PATH": ""},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            continue
        assert program == "wattray", f"{path.name}: {command!r} is neither run nor marked with what it needs"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{command}\n{result.output}"
