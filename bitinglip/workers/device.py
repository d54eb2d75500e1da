"""What a card is: the name of the device that a worker's engine process is to use."""

from __future__ import annotations

import os
import socket

from bitinglip.workers.batch import Identity


def identify(worker: str | None, node: str | None, device: str) -> Identity:
    """Return who this worker is; names that are not given are made from the host and the process."""
    node_id = _token(node or socket.gethostname())
    worker_id = _token(worker) if worker else f"{node_id}-{os.getpid()}"
    return Identity(worker_id, node_id, device)


def _token(name: str) -> str:
    """Make a name one subject token."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name.lower()).strip("-_")
    return cleaned[:63] or "node"
