"""BitingLip: one inference cluster out of the GPUs you have, event-sourced on NATS JetStream."""

__version__ = "0.1.0"
