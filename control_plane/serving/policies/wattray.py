"""``wattray``, the default: phases apart where that pays, one pool of combined replicas where it does not."""

from control_plane.serving.policies.phases_apart import PhasesApart
from control_plane.serving.policies.sized_pool import GPUS_OF_ONE_NODE, SizedPoolPolicy
from control_plane.serving.policy import Policy, Site


def wattray(site: Site) -> Policy:
    """Phases apart need engines that hand KV caches over, more than one node (on one, three pools of their own leave no
    room for any of them to follow its load), and GPUs for every pool."""
    if site.hand_over is not None and site.gpus > GPUS_OF_ONE_NODE:
        apart = PhasesApart(site, site.hand_over)
        if apart.least_gpus <= site.gpus:
            return apart
    return SizedPoolPolicy(site)
