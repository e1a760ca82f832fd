"""The face: command line, Python client, reports."""
