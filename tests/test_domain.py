import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import (
    MAY_FOLLOW,
    REQUEST_TYPES,
    ClassLoad,
    InputClass,
    Load,
    ReplicaState,
    RequestType,
    Slo,
    advance,
)


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "name"),
    [(255, 99, "SS"), (256, 100, "MM"), (1023, 349, "MM"), (1024, 350, "LL"), (8192, 1, "LS"), (20000, 1, "LS")],
)
def test_borders_of_the_nine_types(input_tokens: int, output_tokens: int, name: str) -> None:
    assert str(RequestType.of(input_tokens, output_tokens)) == name


def test_types_parse_back_from_their_names() -> None:
    assert tuple(RequestType.parse(str(kind)) for kind in REQUEST_TYPES) == REQUEST_TYPES
    assert len(set(REQUEST_TYPES)) == 9


@pytest.mark.parametrize("text", ["", "S", "SX", "SSS", "ss"])
def test_an_unknown_type_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="SS"):
        RequestType.parse(text)


def test_a_request_meets_its_slo_only_with_both_limits() -> None:
    slo = Slo()
    assert slo.met(100, 0.25, 0.1)
    assert not slo.met(100, 0.26, 0.1)
    assert not slo.met(100, 0.25, 0.11)
    assert slo.met(2000, 1.9, 0.1)


parts = st.builds(ClassLoad, st.floats(0.01, 100), st.floats(1, 8000), st.floats(1, 2000))


@given(parts, parts)
def test_adding_loads_keeps_rates_and_token_flows(a: ClassLoad, b: ClassLoad) -> None:
    total = a + b
    assert total.rps == pytest.approx(a.rps + b.rps)
    tokens = a.rps * a.input_tokens + b.rps * b.input_tokens
    assert total.rps * total.input_tokens == pytest.approx(tokens)


@given(parts, st.floats(0.1, 10))
def test_scaling_a_load_keeps_its_lengths(part: ClassLoad, factor: float) -> None:
    scaled = Load({InputClass.LONG: part}).scaled(factor)
    assert scaled.rps == pytest.approx(part.rps * factor)
    assert scaled.total.input_tokens == pytest.approx(part.input_tokens)


def test_a_stopped_replica_goes_nowhere() -> None:
    assert MAY_FOLLOW[ReplicaState.STOPPED] == frozenset()
    with pytest.raises(ValueError, match="stopped to ready"):
        advance(ReplicaState.STOPPED, ReplicaState.READY)
    assert advance(ReplicaState.STARTING, ReplicaState.READY) is ReplicaState.READY
