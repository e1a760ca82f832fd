from control_plane.domain import Load, PoolName, ReplicaId, ReplicaState, ReplicaView, RequestSlo
from control_plane.hardware.energy_profile import RooflineProfile
from control_plane.serving.hosting import ClusterHost, RouterHost, only_needed
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policies.single_pool import SinglePoolPolicy
from control_plane.serving.policy import Needs, RoutedRequest, Site
from control_plane.serving.routing import Candidate
from control_plane.settings import Settings

PROFILE = RooflineProfile()
SITE = Site(Settings(), PROFILE, 32, PROFILE.gpu.idle_w, Load())
FULL = ReplicaView(
    ReplicaId("a"), 2, 1980, ReplicaState.READY, kv_used_ratio=0.5, queued_tokens=7, tightest_slack_s=0.1,
    power_w=900.0, ttft_p99_s=0.2, tbt_p99_s=0.03,
)  # fmt: skip


def test_a_part_sees_only_what_its_policy_asked_for() -> None:
    bare = only_needed(FULL, Needs())
    assert (bare.kv_used_ratio, bare.queued_tokens, bare.tightest_slack_s) == (None, None, None)
    assert (bare.power_w, bare.ttft_p99_s, bare.tbt_p99_s) == (None, None, None)
    assert only_needed(FULL, Needs(True, True, True, True)) == FULL


def test_arrivals_that_nobody_takes_stay_within_their_bound() -> None:
    host = RouterHost(make_policy("wattray", SITE), keep_arrivals=100)
    for second in range(1000):
        host.admit(float(second), RoutedRequest(second, 100, 50))
    taken = host.take_arrivals()
    assert len(taken) <= 100
    assert taken[-1].at_s == 999.0
    assert host.take_arrivals() == []


def test_a_router_sees_limits_of_one_request_only_where_it_asked_for_them() -> None:
    seen: list[RoutedRequest] = []

    class Watching(SinglePoolPolicy):
        def router(self):  # type: ignore[no-untyped-def]
            router = super().router()
            ask = router.route

            def route(now_s, request, candidates):  # type: ignore[no-untyped-def]
                seen.append(request)
                return ask(now_s, request, candidates)

            router.route = route  # type: ignore[method-assign]
            return router

    class Asking(Watching):
        needs = Needs(request_slo=True)

    limits = RequestSlo(ttft_s=0.1)
    request = RoutedRequest("r", 100, 10, limits)
    candidates = [Candidate(ReplicaId("a"), PoolName("single-pool"), 1e-4, 1e-3)]
    for policy in (Watching(1), Asking(1)):
        assert RouterHost(policy).route(0.0, request, candidates) is not None
    assert [request.slo for request in seen] == [None, limits]


def test_a_plan_is_due_when_its_time_comes_and_when_gpus_come_or_go() -> None:
    host = ClusterHost(make_policy("wattray", SITE))
    assert host.due(0.0, 32)
    host.step(0.0, 32, Forecast())
    assert not host.due(10.0, 32)
    assert host.due(10.0, 24)
    assert host.due(1800.0, 32)
