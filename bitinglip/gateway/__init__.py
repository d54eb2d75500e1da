"""The door: REST, SSE, metrics."""
