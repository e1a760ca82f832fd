"""How many tokens a request will generate, as quantiles learnt from completed requests.

What is best known is told: the client's own hint; gradient-boosted quantiles of (tenant, app, model) and input tokens;
for whom the trees have not seen, a sketch of that (tenant, app, model)'s last outputs; before anything is known, the
table by input class. ``max_tokens`` cuts all of them. The upper bound is corrected online (conformal inference, per
source, requester and input class, by which pools are made). Where outputs pass it too often all the same, prediction is
off there and the table is told until it would hold again.

The trees are fitted outside the control loop and come back as a table: inputs are binned beforehand, so a look-up says
exactly what the trees say, in microseconds.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.domain import InputClass, OutputClass
from control_plane.serving.conformal import OnlineConformal
from control_plane.serving.length_predictor import LengthTable
from control_plane.settings import Settings

NOMINAL = 0.9
_INPUT_BINS = 250
"""The most that scikit-learn's histogram trees tell apart."""
_TREES: dict[str, Any] = {
    "categorical_features": [0],
    "max_iter": 100,
    "learning_rate": 0.05,
    "early_stopping": False,
    "random_state": 0,
}
_MOST_KEYS = 200
_FEWEST_OF_KEY, _FEWEST_TO_FIT = 100, 500
_REMEMBERED, _SKETCHED = 20_000, 500
_ORDER = tuple(OutputClass)
_WATCH, _OFF_ABOVE, _ON_BELOW = 0.02, 2.5, 1.5
"""Prediction is off above so many times the nominal share of under-predictions, a mean over about fifty requests."""


class Requester(NamedTuple):
    """Whose requests are alike."""

    tenant: str = ""
    app: str = ""
    model: str = ""


ANYBODY = Requester()


class Source(StrEnum):
    """What a prediction is from."""

    HINT = "hint"
    TREES = "trees"
    SKETCH = "sketch"
    TABLE = "table"


class LengthForecast(NamedTuple):
    """Output tokens of one request, none above its ``max_tokens``."""

    expected: float
    """The mean: what loads are made of."""
    median: float
    upper: float
    """No more than this in a share ``NOMINAL`` of all cases."""
    kind: OutputClass
    """The likeliest class."""
    source: Source


class Told(NamedTuple):
    """Before ``max_tokens`` and the correction of ``upper``."""

    mean: float
    median: float
    upper: float
    kind: OutputClass


_NOTHING = Told(0.0, 0.0, 0.0, OutputClass.SHORT)


class LengthTrees:
    """What a fit found for every requester it knew and every bin of inputs."""

    def __init__(self, edges: list[int], rows: Mapping[Requester, list[Told]]) -> None:
        self._edges, self._rows = edges, rows

    def look_up(self, who: Requester, input_tokens: int) -> Told | None:
        """None for a requester that was not in the fit."""
        row = self._rows.get(who)
        return None if row is None else row[bisect_right(self._edges, input_tokens)]


@dataclass(frozen=True, slots=True, eq=False)
class LengthFit:
    """A question that may be answered elsewhere: completed requests, ``who`` by position in ``keys``."""

    keys: tuple[Requester, ...]
    who: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.float64]

    def solve(self) -> LengthTrees:
        """Seconds. Needs scikit-learn."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        shares = np.linspace(0.0, 1.0, _INPUT_BINS + 1)[1:-1]
        edges = np.unique(np.quantile(self.input_tokens, shares, method="higher"))
        features = np.column_stack([self.who, np.searchsorted(edges, self.input_tokens, side="right")])
        grid = np.array([(key, at) for key in range(len(self.keys)) for at in range(len(edges) + 1)])
        columns = []
        for loss, level in (("squared_error", None), ("quantile", 0.5), ("quantile", NOMINAL)):
            trees = HistGradientBoostingRegressor(loss=loss, quantile=level, **_TREES)
            columns.append(np.maximum(1.0, trees.fit(features, self.output_tokens).predict(grid)))
        mean, median, upper = columns
        # Quantiles that cross are put in order (Chernozhukov et al., Econometrica 2010).
        told = zip(mean, np.minimum(median, upper), np.maximum(median, upper), self._kinds(features, grid), strict=True)
        cells = [Told(float(mean), float(median), float(upper), kind) for mean, median, upper, kind in told]
        width = len(edges) + 1
        rows = {key: cells[at * width : (at + 1) * width] for at, key in enumerate(self.keys)}
        return LengthTrees(edges.tolist(), rows)

    def _kinds(self, features: NDArray[np.int64], grid: NDArray[np.int64]) -> list[OutputClass]:
        from sklearn.ensemble import HistGradientBoostingClassifier

        kinds = np.array([_ORDER.index(OutputClass.of(tokens)) for tokens in self.output_tokens.tolist()])
        if len(set(kinds.tolist())) == 1:
            return [_ORDER[kinds[0]]] * len(grid)
        trees = HistGradientBoostingClassifier(**_TREES)
        return [_ORDER[kind] for kind in trees.fit(features, kinds).predict(grid).tolist()]


class _Sketch:
    """The last outputs of one requester, in order of size."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._ordered: list[int] = []
        self._sum = 0

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, tokens: int) -> None:
        if len(self._recent) == _SKETCHED:
            oldest = self._recent.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
            self._sum -= oldest
        self._recent.append(tokens)
        insort(self._ordered, tokens)
        self._sum += tokens

    def told(self) -> Told:
        count = len(self._ordered)
        median = self._ordered[count // 2]
        upper = self._ordered[min(count - 1, int(NOMINAL * (count + 1)))]
        return Told(self._sum / count, median, upper, OutputClass.of(median))


class _Watched:
    """The correction of one group's upper bounds, and whether they hold often enough to be told."""

    def __init__(self) -> None:
        self.conformal = OnlineConformal(NOMINAL)
        self.missed = 1.0 - NOMINAL
        self.off = False

    def settle(self, output_tokens: int, raw_upper: float, scale: float) -> None:
        score, bound = (output_tokens - raw_upper) / scale, self.conformal.quantile(0.0)
        self.conformal.observe(score, bound)
        self.missed += _WATCH * ((score > bound) - self.missed)
        self.off = self.missed > (1.0 - NOMINAL) * (_ON_BELOW if self.off else _OFF_ABOVE)


class LengthPredictor:
    """Learns online; ``fit_due`` and ``adopt`` bring the trees."""

    def __init__(self) -> None:
        self._table = LengthTable()
        self._trees: LengthTrees | None = None
        self._sketches: dict[Requester, _Sketch] = {}
        self._watched: dict[Hashable, _Watched] = {}
        self._completed: deque[tuple[Requester, int, int]] = deque(maxlen=_REMEMBERED)
        self._count, self._fit_at = 0, _FEWEST_TO_FIT

    def predict(
        self, who: Requester, input_tokens: int, max_tokens: int, hint_tokens: int | None = None
    ) -> LengthForecast:
        """``hint_tokens``: what the client expects itself."""
        source, (mean, median, upper, kind) = self._raw(who, input_tokens, hint_tokens)
        if source is not Source.TABLE:
            watched = self._watched.get((source, who, InputClass.of(input_tokens)))
            if watched is not None:
                upper += watched.conformal.quantile(0.0) * max(1.0, upper)
                if watched.off:
                    source = Source.TABLE
        if source is Source.TABLE:
            expected = self._table.expected_tokens(input_tokens, max_tokens)
            return LengthForecast(expected, expected, float(max_tokens), OutputClass.of(round(expected)), source)
        if kind is not OutputClass.SHORT:
            kind = min(kind, OutputClass.of(max_tokens), key=_ORDER.index)
        upper = min(max(upper, median), max_tokens)
        return LengthForecast(min(mean, max_tokens), min(median, max_tokens), upper, kind, source)

    def learn(self, who: Requester, input_tokens: int, output_tokens: int, hint_tokens: int | None = None) -> None:
        """A request has completed. What would be told of it now is judged first, then it is learnt from."""
        if who not in self._sketches and len(self._sketches) >= _MOST_KEYS:
            who = ANYBODY
        source, (_, _, upper, _) = self._raw(who, input_tokens, hint_tokens)
        if source is not Source.TABLE:
            group = source, who, InputClass.of(input_tokens)
            self._watched.setdefault(group, _Watched()).settle(output_tokens, upper, max(1.0, upper))
        self._table.learn(input_tokens, output_tokens)
        self._sketches.setdefault(who, _Sketch()).add(output_tokens)
        self._completed.append((who, input_tokens, output_tokens))
        self._count += 1

    def fit_due(self) -> LengthFit | None:
        """After 500 requests, and then whenever there are half as many again, every
        200,000 at the least."""
        if self._count < self._fit_at:
            return None
        self._fit_at = self._count + min(200_000, self._count // 2)
        keys = tuple(key for key, sketch in self._sketches.items() if len(sketch) >= _FEWEST_OF_KEY)
        at = {key: i for i, key in enumerate(keys)}
        rows = [(at[who], inputs, outputs) for who, inputs, outputs in self._completed if who in at]
        if len(rows) < _FEWEST_TO_FIT:
            return None
        who, inputs, outputs = np.array(rows, dtype=np.int64).T
        return LengthFit(keys, who, inputs, outputs.astype(float))

    def adopt(self, trees: LengthTrees) -> None:
        self._trees = trees

    def _raw(self, who: Requester, input_tokens: int, hint_tokens: int | None) -> tuple[Source, Told]:
        if hint_tokens is not None:
            hint = float(hint_tokens)
            return Source.HINT, Told(hint, hint, hint, OutputClass.of(hint_tokens))
        if who not in self._sketches:
            who = ANYBODY
        told = None if self._trees is None else self._trees.look_up(who, input_tokens)
        if told is not None:
            return Source.TREES, told
        sketch = self._sketches.get(who)
        if sketch is not None and len(sketch) >= _FEWEST_OF_KEY:
            return Source.SKETCH, sketch.told()
        return Source.TABLE, _NOTHING


def lengths_for(settings: Settings) -> LengthPredictor | None:
    """None where the router's table is to do."""
    return LengthPredictor() if settings.lengths == "learned" else None
