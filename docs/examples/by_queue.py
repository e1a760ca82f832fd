"""Every GPU there is, at a low clock while a replica's queue is short and at full clock otherwise."""

from control_plane.serving.policies.single_pool import SinglePoolPolicy


class ByQueue(SinglePoolPolicy):
    def __init__(self, site):
        super().__init__(replicas=site.gpus // 8, tp=8)
        self._clocks = site.profile.gpu.freqs_mhz

    def governor(self, pool, tp, role):
        return LowUnlessBusy(self._clocks)


class LowUnlessBusy:
    def __init__(self, clocks):
        self._low = next(mhz for mhz in clocks if mhz >= 1200)
        self._full = clocks[-1]

    def look(self, queue, now_s):
        return self._full if queue.queued else self._low
