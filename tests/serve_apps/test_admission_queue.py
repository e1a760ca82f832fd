"""Who is handed to a batching library next: laws of the queue, with a brute-force account beside it."""

from hypothesis import given
from hypothesis import strategies as st

from serve_apps.engines.admission_queue import AdmissionQueue, BatchLimits

LIMITS = BatchLimits(kv_tokens=640, page_tokens=64, batch_tokens=100, batch_requests=4)

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.floats(0, 10), st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.just("first"), st.integers(0, 50)),
        st.tuples(st.just("remove"), st.integers(0, 50)),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_more_is_handed_over_than_there_is_room_for_and_the_first_due_goes_first(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    queue = AdmissionQueue(LIMITS)
    waiting: dict[str, tuple[float, int]] = {}
    admitted: dict[str, tuple[int, int]] = {}
    left: dict[str, int] = {}

    def admit() -> None:
        for key in queue.admit():
            assert waiting[key][0] == min(due_s for due_s, _ in waiting.values())
            _, number = waiting.pop(key)
            admitted[key] = sizes[number]
            left[key] = sizes[number][0]
        assert sum(LIMITS.reserved(prompt + answer) for prompt, answer in admitted.values()) <= LIMITS.kv_tokens
        assert len(admitted) <= LIMITS.batch_requests
        assert queue.prefill_tokens == sum(left.values())
        assert admitted or not waiting, "an empty batch admits whatever fits"

    sizes: dict[int, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        if step[0] == "push":
            _, due_s, prompt, answer = step
            if LIMITS.fits(prompt + answer):
                sizes[number] = (prompt, answer)
                waiting[str(number)] = (due_s, number)
                queue.push(str(number), due_s, prompt, answer)
        elif step[0] == "first" and left:
            key = sorted(left)[step[1] % len(left)]
            left[key] = 0
            queue.first_token(key)
        elif step[0] == "remove" and (waiting or admitted):
            known = sorted({*waiting, *admitted})
            key = known[step[1] % len(known)]
            assert queue.remove(key) == (key in admitted)
            waiting.pop(key, None)
            admitted.pop(key, None)
            left.pop(key, None)
        admit()


def test_a_request_fits_up_to_the_last_page() -> None:
    assert LIMITS.fits(640)
    assert not LIMITS.fits(641)
