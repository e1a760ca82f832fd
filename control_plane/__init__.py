"""Decides. Pure: values in, values out; no Ray, no GPU, no clock, no sockets (import-linter enforces it)."""
