"""Perseus: the time-energy frontier of a pipeline iteration, and stragglers."""
