"""The relaxed problem as a linear program for HiGHS: the oracle the frontier is compared with."""

from itertools import pairwise

import highspy
import numpy as np

from control_plane.training.dag import Dag


class HighsOracle:
    """Built once per DAG; a deadline only changes bounds, so that HiGHS starts warm."""

    def __init__(self, dag: Dag) -> None:
        self.dag = dag
        ops = len(dag)
        self._model = highspy.Highs()
        self._model.setOptionValue("output_flag", False)
        infinity = highspy.kHighsInf
        lower: list[float] = []
        upper: list[float] = []
        cost: list[float] = []
        entries: list[list[tuple[int, float]]] = []
        rhs: list[float] = []
        self._scale_s = float(sum(dag.per_operation(c.least_energy.time_s for c in dag.computations)))
        spread_j = [abs(c.effective_j(c.fastest) - c.effective_j(c.least_energy)) for c in dag.computations]
        self._scale_j = max([*spread_j, 1e-300])
        for _ in range(ops):  # starts
            lower.append(0.0)
            upper.append(infinity)
            cost.append(0.0)
        duration_at: list[list[tuple[int, float]]] = []
        self._constant_j = 0.0
        for op in range(ops):
            computation = dag.computation(op)
            slowest = computation.least_energy
            self._constant_j += computation.effective_j(slowest)
            points = [computation.choices[i] for i in computation.hull]
            parts = [(-1, slowest.time_s / self._scale_s)]
            for fast, slow in pairwise(points):
                parts.append((len(cost), -1.0))  # seconds saved in this segment
                lower.append(0.0)
                upper.append((slow.time_s - fast.time_s) / self._scale_s)
                saved_j = computation.effective_j(fast) - computation.effective_j(slow)
                cost.append(saved_j / self._scale_j / ((slow.time_s - fast.time_s) / self._scale_s))
            duration_at.append(parts)
        for before, after in dag.edges:
            entries.append([(int(after), 1.0), (int(before), -1.0), *((c, 1.0) for c, _ in duration_at[before][1:])])
            rhs.append(duration_at[before][0][1])
        self._deadline_rows = range(len(rhs), len(rhs) + ops)
        for op in range(ops):
            entries.append([(op, -1.0), *((c, 1.0) for c, _ in duration_at[op][1:])])
            rhs.append(duration_at[op][0][1])
        self._rhs = rhs
        starts = np.cumsum([0, *(len(row) for row in entries)])[:-1]
        model = highspy.HighsLp()
        model.num_col_ = len(cost)
        model.num_row_ = len(rhs)
        model.col_cost_ = np.array(cost)
        model.col_lower_ = np.array(lower)
        model.col_upper_ = np.array(upper)
        model.row_lower_ = np.array(rhs)
        model.row_upper_ = np.full(len(rhs), infinity)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array([*starts, sum(len(r) for r in entries)], dtype=np.int32)
        model.a_matrix_.index_ = np.array([c for row in entries for c, _ in row], dtype=np.int32)
        model.a_matrix_.value_ = np.array([v for row in entries for _, v in row])
        self._model.setOptionValue("primal_feasibility_tolerance", 1e-10)
        self._model.setOptionValue("dual_feasibility_tolerance", 1e-10)
        assert self._model.passModel(model) == highspy.HighsStatus.kOk

    def effective_j(self, deadline_s: float) -> float:
        """Least effective energy within the deadline."""
        for row in self._deadline_rows:
            self._model.changeRowBounds(row, self._rhs[row] - deadline_s / self._scale_s, highspy.kHighsInf)
        self._model.run()
        assert self._model.getModelStatus() == highspy.HighsModelStatus.kOptimal, self._model.getModelStatus()
        return self._constant_j + float(self._model.getInfo().objective_function_value) * self._scale_j
