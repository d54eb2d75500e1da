"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    """What is pushed there ends with the test, also if that fails: a process that it left would slow those after it."""
    async with AsyncExitStack() as stack:
        yield stack
