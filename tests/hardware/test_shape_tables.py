"""Tables of a shape: the watts are the GPU model's."""

from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.hardware.shape_tables import ShapeTables


def test_the_watts_of_a_replica_are_those_of_its_gpus() -> None:
    profile = RooflineProfile()
    tables = ShapeTables.of(profile, 4)
    for freq_mhz in (345, 1200, 1980):
        watts = tables.power_w(freq_mhz)
        for tokens in (0, 1, 63, 500, 2048):
            assert watts[tokens] == 4 * profile.gpu.power_w(freq_mhz, 1, profile.times(4).activity(tokens))
    assert tables.idle_w == 4 * profile.gpu.context_w
