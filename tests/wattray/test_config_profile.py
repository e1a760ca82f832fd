"""A settings file that names a profile file."""

from pathlib import Path

import pytest

from actors.runtime import planning_profile
from control_plane.hardware.profile_export import exported
from control_plane.hardware.profile_file import dump_profile
from control_plane.hardware.profiles import load_profile
from control_plane.settings import SloSettings
from wattray.config_file import read_settings
from wattray.errors import WattrayError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = exported(load_profile("llama8b-h200"), "a copy", {}).model_copy(
        update={"name": "mine", "slo": SloSettings(tbt_s=0.05)}
    )
    (tmp_path / "mine.json").write_text(dump_profile(file))
    return tmp_path


def test_its_path_counts_from_the_settings_files_folder_and_its_limits_hold(folder: Path) -> None:
    (folder / "settings.yaml").write_text("profile: mine.json\n")
    settings = read_settings(folder / "settings.yaml", None)
    assert settings.slo.tbt_s == 0.05
    assert planning_profile(settings).name == "mine"


def test_limits_of_the_settings_win(folder: Path) -> None:
    (folder / "settings.yaml").write_text("profile: mine.json\nslo: {tbt_s: 0.08}\n")
    assert read_settings(folder / "settings.yaml", None).slo.tbt_s == 0.08


def test_a_file_that_cannot_be_read_is_told_in_a_line(folder: Path) -> None:
    (folder / "settings.yaml").write_text("profile: other.json\n")
    with pytest.raises(WattrayError, match=r"profile: .*other\.json: No such file"):
        read_settings(folder / "settings.yaml", None)
    (folder / "other.json").write_text("{}")
    with pytest.raises(WattrayError, match=r"other\.json: line 1: schema: is missing"):
        read_settings(folder / "settings.yaml", None)
