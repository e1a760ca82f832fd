"""The policies one can simulate, by name: those of the registry, the baseline that is sized by search, and yardsticks
that know the trace."""

from control_plane.serving.policies.own import own_policy, own_policy_names
from control_plane.serving.policies.registry import POLICIES, UnknownPolicyError, unknown_name

SINGLE_POOL = "single-pool"
"""The baseline that all are compared with: its fleet is found by search on the trace."""
YARDSTICK_NAMES = ("static-best", "static-split", "clock-only", "clairvoyant")


def policy_names() -> tuple[str, ...]:
    return (*POLICIES, *YARDSTICK_NAMES, *own_policy_names())


def check_policy_names(names: tuple[str, ...]) -> None:
    """Raises UnknownPolicyError for a name that is none, and where there is no name at all."""
    for name in names:
        if name not in (*POLICIES, *YARDSTICK_NAMES) and own_policy(name) is None:
            raise UnknownPolicyError(unknown_name("policy", name, policy_names()))
    if not names:
        raise UnknownPolicyError(f"no policy named; there are {', '.join(policy_names())}")
