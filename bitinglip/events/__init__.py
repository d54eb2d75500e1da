"""The log: envelope, event types, subjects, streams, append, read and tail."""
