"""Benchmarks: a file a question."""
