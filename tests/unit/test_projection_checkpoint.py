"""Waiting for one's own writes."""

from __future__ import annotations

import asyncio

import pytest

from bitinglip.errors import ProjectionBehind
from bitinglip.projections.checkpoint import Checkpoints


async def test_waiters_wake_in_the_order_of_their_sequences() -> None:
    checkpoints, woken = Checkpoints(), []

    async def wait(sequence: int) -> None:
        await checkpoints.wait("TASKS", sequence, 5)
        woken.append(sequence)

    waiting = [asyncio.create_task(wait(sequence)) for sequence in (3, 1, 2, 2)]
    await asyncio.wait(waiting, timeout=0)
    assert checkpoints.awaited("TASKS")
    checkpoints.advance("TASKS", 2)
    await asyncio.gather(*waiting[1:])
    assert woken == [1, 2, 2]
    checkpoints.advance("TASKS", 7)
    await waiting[0]
    assert checkpoints.applied("TASKS") == 7
    assert not checkpoints.awaited("TASKS")


async def test_who_waits_too_long_is_told_how_far_it_is() -> None:
    checkpoints = Checkpoints()
    checkpoints.advance("TASKS", 4)
    await checkpoints.wait("TASKS", 4, 0)
    with pytest.raises(ProjectionBehind) as refused:
        await checkpoints.wait("TASKS", 5, 0.01)
    assert (refused.value.sequence, refused.value.applied) == (5, 4)
    assert not checkpoints.awaited("TASKS")
    checkpoints.advance("TASKS", 5)
