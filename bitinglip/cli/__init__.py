"""The command line: speaks HTTP, starts processes."""
