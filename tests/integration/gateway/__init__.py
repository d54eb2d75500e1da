"""The gateway over a real socket, on a real log."""
