from control_plane.domain import OutputClass
from control_plane.serving.length_predictor import LengthTable


def test_it_learns_what_a_class_of_inputs_generates() -> None:
    table = LengthTable()
    before = table.predict(3000, 4096)
    for _ in range(300):
        table.learn(3000, 30)
    after = table.predict(3000, 4096)
    assert before.output_class is OutputClass.LONG
    assert after.output_class is OutputClass.SHORT
    assert 30 < after.expected_tokens < 60 < before.expected_tokens


def test_other_inputs_are_not_touched() -> None:
    table = LengthTable()
    before = table.predict(100, 4096)
    for _ in range(300):
        table.learn(3000, 30)
    assert table.predict(100, 4096) == before


def test_max_tokens_is_a_ceiling() -> None:
    prediction = LengthTable().predict(3000, 50)
    assert prediction.output_class is OutputClass.SHORT
    assert prediction.expected_tokens <= 50
