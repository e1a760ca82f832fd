"""The parts of a simulated cluster, one idea each; ``simulation.serving_cluster`` puts them together."""
