"""What a profile remembers of the questions it was asked."""

import gc
import random
import tracemalloc

from control_plane.domain import ClassLoad, InputClass, Load, Shape
from control_plane.hardware.machine_profile import CACHED_POINTS
from control_plane.hardware.profiles import load_profile

MB = 2**20


def test_what_a_profile_remembers_is_bounded_to_a_few_megabytes() -> None:
    """Every actor that plans has a profile of its own, and every tick asks for other loads."""
    profile, asked, drawn = load_profile("llama2-70b-h100-current"), 40, random.Random(1)
    shape = Shape(4, 1980)
    mixes = [
        Load({name: ClassLoad(0.1 + drawn.random(), 100 + drawn.random(), 50 + drawn.random()) for name in InputClass})
        for _ in range(asked)
    ]
    profile.power_w(shape, mixes[0])
    gc.collect()
    tracemalloc.start()
    try:
        for mix in mixes:
            profile.power_w(shape, mix)
            profile.max_load(shape, mix)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes / asked * CACHED_POINTS < 20 * MB
