"""DynamoLLM: pools, replicas, tensor parallelism and clocks for serving."""
