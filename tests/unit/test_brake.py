"""The brake on the process's memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from bitinglip.projections.brake import ROOM_BYTES, Brake


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the size of a process")
def test_nothing_large_is_given_while_it_is_on() -> None:
    brake, before = Brake(), resource.getrlimit(resource.RLIMIT_DATA)
    brake.hold()
    brake.hold()
    brake.release()
    with pytest.raises(MemoryError):
        bytearray(2 * ROOM_BYTES)
    assert len(bytearray(2**20)) == 2**20
    brake.release()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(bytearray(2 * ROOM_BYTES)) == 2 * ROOM_BYTES
