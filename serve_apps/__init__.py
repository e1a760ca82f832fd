"""Ray Serve applications: the OpenAI-compatible router and the model replicas."""
