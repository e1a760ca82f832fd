import os
from pathlib import Path

import pytest

from control_plane.settings import Settings, parse_settings
from wattray import ray_auth
from wattray.errors import WattrayError
from wattray.exposure import check_exposure, is_loopback


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ray_auth.MODE, "unset by the test")
    for name in (ray_auth.MODE, ray_auth.TOKEN, ray_auth.TOKEN_PATH):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_head_of_ours_gets_a_token_that_only_its_owner_can_read(home: Path) -> None:
    assert ray_auth.secure_own_head()
    token = home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) >= 32
    assert os.environ[ray_auth.MODE] == "token"


def test_a_token_that_exists_is_kept_and_closed_to_others(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    ray_auth.secure_own_head()
    assert token.read_text() == "mine"
    assert token.stat().st_mode & 0o777 == 0o600


def test_an_empty_token_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "t").write_text("\n")
    monkeypatch.setenv(ray_auth.TOKEN_PATH, str(home / "t"))
    with pytest.raises(WattrayError, match="is empty"):
        ray_auth.secure_own_head()


def test_a_place_that_takes_no_token_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv(ray_auth.TOKEN_PATH, str(home / "file" / "token"))
    with pytest.raises(WattrayError, match="RAY_AUTH_TOKEN_PATH"):
        ray_auth.secure_own_head()


def test_a_user_who_disabled_tokens_is_obeyed_and_clients_follow_the_token_that_exists(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_auth.use_token_if_there_is_one()
    assert ray_auth.mode() == "disabled"
    monkeypatch.setenv(ray_auth.MODE, "disabled")
    assert not ray_auth.secure_own_head()
    assert not (home / ".ray").exists()
    monkeypatch.delenv(ray_auth.MODE)
    monkeypatch.setenv(ray_auth.TOKEN, "secret")
    ray_auth.use_token_if_there_is_one()
    assert ray_auth.mode() == "token"


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("localhost", True), ("127.8.8.8", True), ("::1", True), ("0.0.0.0", False),
        ("::", False), ("192.168.1.4", False), ("my-host", False), ("", False), ("localhost.example.org", False),
    ],
)  # fmt: skip
def test_what_counts_as_this_machine_alone(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


def test_a_public_router_needs_both_a_token_and_an_api_key() -> None:
    def public(**more: str) -> Settings:
        return parse_settings({"serve": {"host": "0.0.0.0", **more}})

    check_exposure(Settings(), ray_token_mode=False)
    with pytest.raises(WattrayError, match="without token authentication"):
        check_exposure(public(api_key_file="/k"), ray_token_mode=False)
    with pytest.raises(WattrayError, match=r"serve\.api_key_file"):
        check_exposure(public(), ray_token_mode=True)
    check_exposure(public(api_key_file="/k"), ray_token_mode=True)
