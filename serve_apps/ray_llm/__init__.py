"""Applications of ``ray.serve.llm`` under wattray's control plane; ``wattray.serve`` has the public names."""
