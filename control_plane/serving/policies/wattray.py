"""``wattray``, the default: phases apart where that pays, combined replicas where it does not."""

from control_plane.serving.policies.combined import CombinedPolicy
from control_plane.serving.policies.phases_apart import PhasesApart
from control_plane.serving.policies.sized_pool import GPUS_OF_ONE_NODE, SizedPoolPolicy
from control_plane.serving.policy import Policy, Site


def wattray(site: Site) -> Policy:
    """Phases apart need engines that hand KV caches over, more than one node (on one, three pools of their own leave no
    room for any of them to follow its load), and GPUs for every pool. Fewer GPUs serve as one sized pool. Engines that
    hand nothing over have the pools of the settings; ``sized-pool`` by name saves more there."""
    if site.hand_over is None:
        return CombinedPolicy(site)
    apart = PhasesApart(site, site.hand_over)
    if site.gpus <= GPUS_OF_ONE_NODE or apart.least_gpus > site.gpus:
        return SizedPoolPolicy(site)
    return apart
