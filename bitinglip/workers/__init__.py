"""The work: pull, lease, run in an engine process, and tell the log."""
