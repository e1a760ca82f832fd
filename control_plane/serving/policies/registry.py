"""The serving policies by name. A new policy is one file beside this one and one line here, or a user's own."""

import difflib
from collections.abc import Callable, Mapping

from control_plane.serving.policies.combined import CombinedPolicy
from control_plane.serving.policies.dynamollm import (
    DYNAMOLLM,
    MULTI_POOL,
    SCALE_FREQ,
    SCALE_INST,
    SCALE_SHARD,
    TypePools,
)
from control_plane.serving.policies.own import own_policy, own_policy_names
from control_plane.serving.policies.phases_apart import PhasesApart
from control_plane.serving.policies.single_pool import SinglePoolPolicy
from control_plane.serving.policies.sized_pool import SizedPoolPolicy
from control_plane.serving.policies.wattray import wattray
from control_plane.serving.policy import GpuBudgetError, Policy, Site

POLICIES: Mapping[str, Callable[[Site], Policy]] = {
    "wattray": wattray,
    "combined": CombinedPolicy,
    "phases-apart": PhasesApart.at,
    "sized-pool": SizedPoolPolicy,
    "single-pool": SinglePoolPolicy.filling,
    "dynamollm": TypePools.with_knobs(DYNAMOLLM),
    "multi-pool": TypePools.with_knobs(MULTI_POOL),
    "scale-inst": TypePools.with_knobs(SCALE_INST),
    "scale-shard": TypePools.with_knobs(SCALE_SHARD),
    "scale-freq": TypePools.with_knobs(SCALE_FREQ),
}


class UnknownPolicyError(ValueError):
    """There is no policy of this name; the message lists those that there are."""


def make_policy(name: str, site: Site) -> Policy:
    """The policy of this name, built for a site. Raises UnknownPolicyError, and GpuBudgetError where the site has too
    few GPUs for one replica of each of its pools."""
    build = POLICIES.get(name) or own_policy(name)
    if build is None:
        raise UnknownPolicyError(unknown_name("policy", name, (*POLICIES, *own_policy_names())))
    policy = build(site)
    least = min(site.profile.tps) * len(policy.pools)
    if site.gpus < least:
        pools = len(policy.pools)
        raise GpuBudgetError(f"{site.gpus} GPUs are too few for {name}'s {pools} pools; at least {least} work")
    return policy


def unknown_name(what: str, name: str, known: tuple[str, ...]) -> str:
    """What to say of a name that is not among the known ones."""
    close = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"unknown {what} {name!r}{hint}; there are {', '.join(known)}"
