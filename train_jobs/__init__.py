"""Ray Train jobs that run under a Perseus plan."""
