import os
import tempfile
from pathlib import Path

import pytest

from wattray import run_folder
from wattray.errors import WattrayError


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "precious").write_text("keep me")
    return tmp_path


def test_a_run_folder_is_made_private_and_removed_whole(temp: Path) -> None:
    name = run_folder.make()
    folder = temp / name
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "train").mkdir()
    (folder / "train" / "checkpoint").write_text("x")
    assert list(run_folder.found()) == [name]
    run_folder.remove(name)
    run_folder.remove(name)
    assert not folder.exists()
    assert (temp / "precious").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "/", "/tmp", "a/b", "wattray-run-", "../wattray-run-0123456789abcdef"])
def test_a_name_that_is_no_run_folder_is_never_removed(temp: Path, name: str) -> None:
    with pytest.raises(WattrayError, match="no name of a run folder"):
        run_folder.remove(name)
    assert (temp / "precious").exists()


def test_a_folder_that_only_looks_like_one_is_left_alone(temp: Path) -> None:
    planted = temp / "wattray-run-0123456789abcdef"
    planted.mkdir(mode=0o700)
    (planted / "file").write_text("theirs")
    run_folder.remove(planted.name)  # it has no marker: as if there were none
    assert (planted / "file").exists()
    marker = planted / run_folder.MARKER
    marker.write_text("another name")
    marker.chmod(0o600)
    with pytest.raises(WattrayError, match="not marked"):
        run_folder.remove(planted.name)
    assert (planted / "file").exists()
    assert list(run_folder.found()) == []


def test_a_link_in_a_run_folders_place_is_not_followed(temp: Path) -> None:
    name = run_folder.make()
    real = temp / name
    real.rename(temp / "elsewhere")
    real.symlink_to(temp / "elsewhere")
    with pytest.raises(WattrayError, match="no plain folder"):
        run_folder.remove(name)
    assert (temp / "elsewhere").exists()


def test_a_folder_that_others_may_write_to_is_not_trusted(temp: Path) -> None:
    name = run_folder.make()
    (temp / name).chmod(0o777)
    with pytest.raises(WattrayError, match="open to other users"):
        run_folder.remove(name)
    assert (temp / name).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder to somebody else")
def test_a_folder_of_another_user_is_not_trusted(temp: Path) -> None:
    name = run_folder.make()
    os.chown(temp / name, 12345, -1)
    with pytest.raises(WattrayError, match="belongs to user 12345"):
        run_folder.remove(name)
    assert (temp / name).exists()
