"""Usage by tenant survives routers and managers."""

import logging
from pathlib import Path

import pytest

from actors.messages import TenantUsage
from actors.usage_book import WRITE_S, UsageBook


def test_routers_add_up_and_telling_twice_does_no_harm() -> None:
    book = UsageBook(None, lambda: 0.0)
    book.used("first", {"a": TenantUsage(1, 10, 5, 40.0)})
    book.used("first", {"a": TenantUsage(3, 30, 15, 120.0)})
    book.used("second", {"a": TenantUsage(1, 1, 1, 1.0), "b": TenantUsage(1, 2, 3, 4.0, 1)})
    assert book.by_tenant() == {"a": TenantUsage(4, 31, 16, 121.0), "b": TenantUsage(1, 2, 3, 4.0, 1)}


def test_a_book_that_is_opened_again_knows_what_was_written(tmp_path: Path) -> None:
    now = [0.0]
    book = UsageBook(tmp_path / "usage.json", lambda: now[0])
    book.used("first", {"a": TenantUsage(1, 10, 5, 40.0)})
    assert not (tmp_path / "usage.json").exists()
    now[0] = WRITE_S
    book.used("first", {"a": TenantUsage(2, 20, 10, 80.0)})
    again = UsageBook(tmp_path / "usage.json", lambda: now[0])
    again.used("second", {"a": TenantUsage(1, 1, 1, 1.0)})
    assert again.by_tenant() == {"a": TenantUsage(3, 21, 11, 81.0)}


@pytest.mark.parametrize("content", ["{ damaged", "[]", '{"r": {"a": {"requests": 1, "other": 2}}}', "7"])
def test_a_damaged_book_is_told_and_written_anew(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "usage.json").write_text(content)
    with caplog.at_level(logging.ERROR):
        book = UsageBook(tmp_path / "usage.json", lambda: 0.0)
    assert "usage before now is not known" in caplog.text
    assert book.by_tenant() == {}
