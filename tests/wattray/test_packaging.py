"""What is installed: a wheel with all its data that runs outside the repository, and a core without torch."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from train_jobs import torch_there

REPO = Path(__file__).parents[2]
PACKAGES = ("control_plane", "actors", "gpud", "serve_apps", "train_jobs", "wattray")
HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(
            REPO / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, place / "source" / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        place,
        place / "source",
    ]
    subprocess.run(command, check=True, timeout=200)
    return next(place.glob("wattray-*.whl"))


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    there = {
        path.relative_to(REPO).as_posix()
        for name in PACKAGES
        for path in (REPO / name).rglob("*")
        if path.suffix in (".py", ".json", ".csv", ".html") or path.name == "py.typed"
    }
    assert {f"{name}/py.typed" for name in PACKAGES} <= there
    assert there <= held


def test_the_wheel_simulates_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    lines = [f"2023-11-16 18:00:{i:02d},{200 + 37 * i},{10 + i}" for i in range(20)]
    (tmp_path / "t.csv").write_text(HEAD + "\n".join(lines) + "\n")
    code = "import wattray, sys; print(wattray.__file__, file=sys.stderr); from wattray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "simulate", "--trace", "t.csv", "--policies", "single-pool", "--json", "-"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "installed") in done.stderr
    assert '"single-pool"' in done.stdout


def test_the_core_asks_for_no_torch() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    core = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
    assert "torch" not in core
    assert any(line.startswith("torch") for line in project["optional-dependencies"]["train"])
    # Whatever the command line, the simulator, the planner and the client load, torch is not among it.
    modules = "wattray.cli, wattray.cli_simulate, wattray.cli_frontier, wattray.client, wattray.demo, wattray.lifecycle"
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr


def test_without_torch_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_there, "find_spec", lambda name: None)
    with pytest.raises(torch_there.NoTorchError, match=r"^training needs torch, .*: pip install 'wattray\[train\]'$"):
        torch_there.check_torch("training")


def test_the_version_and_the_completion_are_told() -> None:
    command = [sys.executable, "-m", "wattray"]
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=100, check=True)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert told.stdout == f"wattray {project['version']}\n"
    assert f"version: {project['version']}\n" in (REPO / "CITATION.cff").read_text()
    asked = {**os.environ, "_WATTRAY_COMPLETE": "complete_bash", "COMP_WORDS": "wattray sim", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['wattray']; from wattray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=asked, check=False
    )
    assert "simulate" in done.stdout.split(), done.stderr
