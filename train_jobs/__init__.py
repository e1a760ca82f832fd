"""Training jobs: a pipeline-parallel model on Ray Train whose computations are charged to GPUs under a Perseus plan."""
