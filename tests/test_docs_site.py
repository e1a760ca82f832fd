"""The documentation site builds strictly, a broken link fails it, and no page of it asks the network for anything."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests_support import ROOT

pytestmark = pytest.mark.skipif(find_spec("material") is None, reason="the extra `docs` (mkdocs-material) is not here")
FETCHED = re.compile(
    r"<(?:script|img|iframe|link rel=.?(?:stylesheet|preconnect|icon))[^>]*?(?:src|href)=.?(?:https?:)?//"
)


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", source / "mkdocs.yml", "-d", site]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_the_site_is_whole_and_reads_offline(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").with_suffix("").as_posix() for path in tmp_path.rglob("*.html")}
    sources = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == sources | {"404"}
    fetched = [path.name for path in tmp_path.rglob("*.html") if FETCHED.search(path.read_text())]
    assert fetched == []
    styles = [path.name for path in tmp_path.rglob("*.css") if re.search(r"url\(['\"]?(https?:)?//", path.read_text())]
    assert styles == []


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    page = tmp_path / "docs" / "index.md"
    page.write_text(page.read_text() + "\n[gone](gone.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "gone.md" in done.stderr + done.stdout
