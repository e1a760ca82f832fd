"""GPU drivers behind one protocol: simulated hardware and NVML."""
