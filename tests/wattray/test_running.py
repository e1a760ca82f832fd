import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from wattray import ray_head, run_folder, running
from wattray.errors import WattrayError
from wattray.process_identity import ProcessIdentity
from wattray.running import Running


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def state(**more: object) -> Running:
    return Running.model_validate({"address": "127.0.0.1:6379", "dashboard_url": "http://127.0.0.1:8265", **more})


def test_what_was_saved_is_found_and_nobody_else_may_read_it(temp: Path) -> None:
    saved = state(run_dir=run_folder.make(), apps=("router",))
    running.save(saved)
    assert running.load() == saved
    assert running.state_file().stat().st_mode & 0o777 == 0o600
    assert [path.name for path in running.state_file().parent.iterdir()] == ["up.json"]
    running.forget()
    running.forget()


def test_a_lost_or_damaged_record_is_found_again_in_the_run_folder(sleeper: subprocess.Popen[bytes]) -> None:
    saved = state(run_dir=run_folder.make(), head=ProcessIdentity.of(sleeper.pid))
    running.save(saved)
    running.state_file().unlink()
    assert running.load() == saved
    running.save(saved)
    running.state_file().write_text("{ half a fi")
    assert running.load() == saved


def test_a_damaged_record_without_any_run_folder_is_told() -> None:
    running.save(state())
    running.state_file().write_text("{")
    with pytest.raises(WattrayError, match=r"up\.json is damaged .* remove it"):
        running.load()


@pytest.mark.parametrize(
    "field", ['"address": "/etc/passwd"', '"address": "x:1", "run_dir": "..", "more": 1', '"address": 3']
)
def test_a_record_of_another_form_is_not_believed(field: str) -> None:
    running.save(state())
    running.state_file().write_text("{" + field + ', "dashboard_url": "http://x"}')
    with pytest.raises(WattrayError, match="damaged"):
        running.load()


def test_a_run_dir_in_a_record_never_names_anything_but_a_run_folder(temp: Path) -> None:
    for run_dir in ("", "..", str(temp)):
        with pytest.raises(WattrayError):
            _ = state(run_dir=run_dir).folder


def test_a_record_behind_a_link_or_open_to_others_is_not_believed(temp: Path) -> None:
    running.save(state())
    file = running.state_file()
    file.chmod(0o644)
    with pytest.raises(WattrayError, match="open to other users"):
        running.load()
    file.unlink()
    (temp / "planted.json").write_text(state().model_dump_json())
    file.symlink_to(temp / "planted.json")
    with pytest.raises(WattrayError, match="no plain file"):
        running.load()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder to somebody else")
def test_a_record_that_another_user_planted_is_not_believed(temp: Path) -> None:
    running.save(state())
    os.chown(running.state_file().parent, 12345, -1)
    with pytest.raises(WattrayError, match="belongs to user 12345"):
        running.load()


def test_a_process_counts_only_with_the_moment_it_started(sleeper: subprocess.Popen[bytes]) -> None:
    head = ProcessIdentity.of(sleeper.pid)
    assert head.process() is not None
    stranger = ProcessIdentity(sleeper.pid, head.started_s - 100.0)
    assert stranger.process() is None
    ray_head.end(stranger)
    assert sleeper.poll() is None
    ray_head.end(head)
    sleeper.wait(timeout=5)
    assert head.process() is None


def test_only_processes_that_carry_the_runs_name_are_ended(sleeper: subprocess.Popen[bytes]) -> None:
    marked = {**os.environ, ray_head.RUN_VARIABLE: "wattray-run-00000000deadbeef"}
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=marked)
    while "-c" not in psutil.Process(ours.pid).cmdline():
        pass
    ray_head.end_run("wattray-run-00000000deadbeef")
    ours.wait(timeout=5)
    assert not psutil.pid_exists(ours.pid)
    assert sleeper.poll() is None
