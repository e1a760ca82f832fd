"""Touch the world: thin plain classes, wrapped as Ray actors in runtime.py only."""
