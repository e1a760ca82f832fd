"""The benchmark scripts that tests use, as fixtures: nothing can import them by name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_module(path: Path) -> ModuleType:
    """A Python file as a module, by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def poisson() -> ModuleType:
    return load_module(ROOT / "benchmarks" / "profiles" / "poisson_replica.py")


@pytest.fixture(scope="session")
def peer_agreement() -> ModuleType:
    return load_module(ROOT / "benchmarks" / "simulator" / "peer_agreement.py")


@pytest.fixture(scope="session")
def peer_python() -> str:
    """A Python with ai-dynamo-runtime, in ``.venv/peer``: it must not meddle with the versions of this environment."""
    python = ROOT / ".venv" / "peer" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no peer: python -m venv .venv/peer && .venv/peer/bin/pip install ai-dynamo-runtime")
    return str(python)


@pytest.fixture(scope="session")
def fit() -> ModuleType:
    return load_module(ROOT / "benchmarks" / "profiles" / "fit.py")


@pytest.fixture(scope="session")
def measurements() -> Path:
    """The measured data; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data" / "profiles"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not here")
    return folder


@pytest.fixture(scope="session")
def fit_h100() -> ModuleType:
    return load_module(ROOT / "benchmarks" / "profiles" / "fit_h100.py")


@pytest.fixture(scope="session")
def on_real_gpu() -> ModuleType:
    return load_module(ROOT / "benchmarks" / "profiles" / "on_real_gpu.py")
