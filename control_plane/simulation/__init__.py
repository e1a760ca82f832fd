"""Virtual time: the very same policies, driven by events instead of a clock."""
