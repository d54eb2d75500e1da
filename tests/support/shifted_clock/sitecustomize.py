"""Gives a process a wall clock that is off by the seconds in the file that SHIFTED_CLOCK names, whenever it looks."""

import os
import time
from pathlib import Path

_file = Path(os.environ["SHIFTED_CLOCK"])
_true = time.time


def _shifted() -> float:
    return _true() + float(_file.read_text() or 0)


time.time = _shifted
