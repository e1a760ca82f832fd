"""Laws of the length predictor: what it may never say, when it is sure, and when it stops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.domain import OutputClass, PoolName, ReplicaId
from control_plane.serving.hosting import RouterHost
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.length_quantiles import ANYBODY, LengthPredictor, Requester, Source, lengths_for
from control_plane.serving.policies.single_pool import SinglePoolPolicy
from control_plane.serving.policy import RoutedRequest
from control_plane.serving.routing import Candidate, Route
from control_plane.settings import Settings

CHAT, CODE = Requester("a", "chat"), Requester("a", "code")


def gamma(mean: float, count: int, seed: int = 0) -> list[int]:
    return np.maximum(1, np.random.default_rng(seed).gamma(2.0, mean / 2, count)).astype(int).tolist()


def taught(outputs: list[int], who: Requester = CHAT, inputs: int = 800) -> LengthPredictor:
    predictor = LengthPredictor()
    for tokens in outputs:
        predictor.learn(who, inputs, tokens)
    return predictor


def fit(predictor: LengthPredictor) -> None:
    pytest.importorskip("sklearn", reason="the trees are scikit-learn's")
    due = predictor.fit_due()
    assert due is not None
    predictor.adopt(due.solve())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 5_000)), min_size=90, max_size=250),
    st.integers(1, 5_000),
    st.one_of(st.none(), st.integers(1, 9_000)),
)
def test_what_is_said_is_in_order_and_within_max_tokens(
    requests: list[tuple[int, int]], max_tokens: int, hint: int | None
) -> None:
    predictor = LengthPredictor()
    for inputs, outputs in requests:
        predictor.learn(CHAT, inputs, outputs, hint)
        said = predictor.predict(CHAT, inputs, max_tokens, hint)
        assert 0 < said.median <= said.upper <= max_tokens
        assert 0 < said.expected <= max_tokens
        assert tuple(OutputClass).index(said.kind) <= tuple(OutputClass).index(OutputClass.of(max_tokens))


def test_with_nothing_known_the_table_is_told_and_the_bound_is_max_tokens() -> None:
    said = LengthPredictor().predict(CHAT, 800, 1000)
    assert (said.source, said.upper) == (Source.TABLE, 1000.0)
    assert said.expected == LengthTable().expected_tokens(800, 1000)


def test_each_requester_has_a_sketch_of_its_own() -> None:
    predictor = taught(gamma(400, 300))
    for tokens in gamma(20, 300, seed=1):
        predictor.learn(CODE, 800, tokens)
    chat, code = (predictor.predict(who, 800, 4096) for who in (CHAT, CODE))
    assert chat.source is code.source is Source.SKETCH
    assert chat.expected == pytest.approx(400, rel=0.15)
    assert code.expected == pytest.approx(20, rel=0.15)
    assert (chat.kind, code.kind) == (OutputClass.MEDIUM, OutputClass.SHORT)
    assert code.upper < chat.median


def test_the_nominal_share_stays_below_the_bound() -> None:
    predictor, held = LengthPredictor(), []
    for tokens in gamma(200, 4000):
        held.append(tokens <= predictor.predict(CHAT, 800, 10_000).upper)
        predictor.learn(CHAT, 800, tokens)
    assert np.mean(held[500:]) == pytest.approx(0.9, abs=0.02)


def test_under_a_shift_the_table_is_told_until_predictions_hold_again() -> None:
    predictor = taught(gamma(30, 1000))
    assert predictor.predict(CHAT, 800, 4096).source is Source.SKETCH
    sources, held = [], []
    for tokens in gamma(900, 3000, seed=1):
        said = predictor.predict(CHAT, 800, 4096)
        sources.append(said.source)
        held.append(tokens <= said.upper)
        predictor.learn(CHAT, 800, tokens)
    off = sources.index(Source.TABLE)
    assert off <= 20
    assert all(held[off : sources.index(Source.SKETCH, off)])
    assert sources[-1] is Source.SKETCH
    assert np.mean(held[-1000:]) == pytest.approx(0.9, abs=0.03)


def test_a_clients_hint_is_planned_with_and_its_habit_is_learnt() -> None:
    predictor = LengthPredictor()
    assert predictor.predict(CHAT, 800, 4096, 500).median == 500.0
    random = np.random.default_rng(2)
    for _ in range(1000):
        hint = int(random.integers(50, 400))
        predictor.learn(CHAT, 800, int(hint * random.uniform(0.8, 1.6)), hint)
    said = predictor.predict(CHAT, 800, 4096, 100)
    assert said.source is Source.HINT
    assert said.upper == pytest.approx(152, abs=8)


def test_trees_find_what_depends_on_input_tokens() -> None:
    random = np.random.default_rng(4)
    predictor = LengthPredictor()
    for _ in range(2500):
        inputs = int(random.integers(10, 4000))
        predictor.learn(CHAT, inputs, int(random.integers(400, 500) if inputs < 2000 else random.integers(10, 60)))
        predictor.learn(CODE, inputs, int(random.integers(150, 250)))
    fit(predictor)
    short, long, code = (predictor.predict(*ask, 4096) for ask in ((CHAT, 1000), (CHAT, 3000), (CODE, 3000)))
    assert short.source is Source.TREES
    assert [one.kind for one in (short, long, code)] == [OutputClass.LONG, OutputClass.SHORT, OutputClass.MEDIUM]
    assert short.median == pytest.approx(450, abs=15)
    assert short.upper == pytest.approx(490, abs=15)
    assert long.expected == pytest.approx(35, abs=10)
    assert code.median == pytest.approx(200, abs=15)
    assert predictor.predict(Requester("b"), 1000, 4096).source is Source.TABLE


def test_one_class_alone_can_be_fitted() -> None:
    predictor = taught(gamma(10, 600))
    fit(predictor)
    assert predictor.predict(CHAT, 800, 4096).kind is OutputClass.SHORT


def test_of_too_many_requesters_the_rest_is_anybody() -> None:
    predictor = LengthPredictor()
    for tenant in range(1000):
        predictor.learn(Requester(f"t{tenant}"), 800, 40)
    assert predictor.predict(Requester("t999"), 800, 4096).source is Source.SKETCH
    assert predictor.predict(Requester("nobody"), 800, 4096) == predictor.predict(ANYBODY, 800, 4096)


def test_fits_fall_due_ever_more_rarely() -> None:
    predictor, due = LengthPredictor(), []
    for count in range(1, 6001):
        predictor.learn(CHAT, 800, 40)
        if predictor.fit_due() is not None:
            due.append(count)
    assert due[0] == 500
    assert len(due) <= 8
    assert due[-1] - due[-2] >= due[1] - due[0]


def test_routers_are_shown_the_prediction_and_the_forecaster_its_mean() -> None:
    seen: list[RoutedRequest] = []

    class Watching(SinglePoolPolicy):
        def router(self):  # type: ignore[no-untyped-def]
            router = super().router()
            ask = router.route

            def route(now_s, request, candidates) -> Route | None:  # type: ignore[no-untyped-def]
                seen.append(request)
                return ask(now_s, request, candidates)

            router.route = route  # type: ignore[method-assign]
            return router

    lengths = lengths_for(Settings(lengths="learned"))
    assert lengths is not None
    host = RouterHost(Watching(1), lengths=lengths)
    replica = ReplicaId("a")
    candidates = [Candidate(replica, PoolName("single-pool"), 1e-4, 1e-3)]
    for number in range(150):
        request = RoutedRequest(number, 800, 4096, who=CODE)
        host.admit(0.0, request)
        host.route(0.0, request, candidates)
        host.first_token(number, replica, 800, 0.1)
        host.ended(number, replica, 800, 17)
    assert seen[0].predicted is not None
    assert seen[0].predicted.source is Source.TABLE
    assert seen[-1].predicted == lengths.predict(CODE, 800, 4096)
    assert seen[-1].predicted.source is Source.SKETCH
    assert host.take_arrivals()[-1].expected_output_tokens == pytest.approx(17)


def test_a_request_that_is_gone_teaches_nothing() -> None:
    lengths = LengthPredictor()
    host = RouterHost(SinglePoolPolicy(1), lengths=lengths)
    candidates = [Candidate(ReplicaId("a"), PoolName("single-pool"), 1e-4, 1e-3)]
    for number in range(200):
        request = RoutedRequest(number, 800, 4096, who=CODE)
        host.admit(0.0, request)
        host.route(0.0, request, candidates)
        host.dropped(number, ReplicaId("a"))
        host.gone(number)
    assert lengths.predict(CODE, 800, 4096).source is Source.TABLE


def test_the_table_is_the_default() -> None:
    assert lengths_for(Settings()) is None
