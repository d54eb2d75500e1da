"""Work that gives way: nobody waits for it, and those who wait for something else are to notice little of it."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICE = 10


def give_way() -> None:
    """Let this thread, and those that it starts, have the cores that others leave.

    Linux has a niceness for each thread (setpriority(2)); elsewhere nothing is changed.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
