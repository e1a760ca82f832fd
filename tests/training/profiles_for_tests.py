"""Profiles for tests: a seeded synthetic one with a heavier last stage, and the measured ones."""

import random
from pathlib import Path

import pytest

from control_plane.training.profile import Choice, Profile, profile_of, read_profile

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def synthetic_profile(stages: int, clocks: int = 12, seed: int = 7) -> Profile:
    rng = random.Random(seed)
    choices = {}
    for stage in range(stages):
        for instruction, work in (("forward", 1.0), ("backward", 2.0)):
            size = work * (1 + 0.3 * rng.random() + (0.4 if stage == stages - 1 else 0))
            measured = []
            for step in range(clocks):
                freq_mhz = 1400 - 720 // clocks * step
                speed = freq_mhz / 1400
                time_s = size * (0.35 + 0.65 / speed) * (1 + 0.002 * rng.random())
                power_w = 90 + 260 * speed**2.6
                measured.append(Choice(freq_mhz, time_s, power_w * time_s))
            choices[(stage, instruction)] = tuple(measured)
    return profile_of(choices)


def measured_profile(name: str) -> Profile:
    """A measured profile at the full scale of a stage of eight GPUs; skips where the data is absent."""
    return read_profile(measured_csv(name).read_text()).scaled(10, 10, 8)


def measured_csv(name: str) -> Path:
    path = SHARED / "perseus" / "stage_profile" / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"no measured profile at {path}")
    return path
