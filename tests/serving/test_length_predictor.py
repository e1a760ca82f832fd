from control_plane.serving.length_predictor import LengthTable


def test_it_learns_what_a_class_of_inputs_generates() -> None:
    table = LengthTable()
    before = table.expected_tokens(3000, 4096)
    for _ in range(300):
        table.learn(3000, 30)
    assert 30 < table.expected_tokens(3000, 4096) < 60 < before


def test_other_inputs_are_not_touched() -> None:
    table = LengthTable()
    before = table.expected_tokens(100, 4096)
    for _ in range(300):
        table.learn(3000, 30)
    assert table.expected_tokens(100, 4096) == before


def test_max_tokens_is_a_ceiling() -> None:
    assert LengthTable().expected_tokens(3000, 50) <= 50
