"""What machines do: GPU power and clocks, continuous batching, energy profiles; used by both worlds."""
