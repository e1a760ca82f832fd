"""gpud."""
