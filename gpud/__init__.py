"""The only writer of clocks: one small process per node that sets GPUs for others, under leases, and undoes it.

It is the only part of wattray that needs privilege, so it does little: it reads, locks clocks, limits power and resets,
and imports neither Ray nor numpy nor torch (import-linter enforces it).
"""
