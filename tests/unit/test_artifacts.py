"""Writes to a bucket whose stream answers nobody yet are tried again, and not for ever."""

from __future__ import annotations

import pytest
from nats.js.errors import NoStreamResponseError

from bitinglip.events import artifacts


class Young:
    """A stream that leaves the first calls without an answer."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.calls = 0

    async def call(self) -> None:
        """Answer, or not."""
        self.calls += 1
        if self.calls <= self.silent:
            raise NoStreamResponseError


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SILENT_S", (0.0, 0.0))


@pytest.mark.parametrize("silent", [0, 1, 2])
async def test_a_stream_that_is_young_is_asked_again(silent: int) -> None:
    young = Young(silent)
    await artifacts.answered(young.call)
    assert young.calls == silent + 1


async def test_one_that_stays_silent_is_told_of() -> None:
    young = Young(3)
    with pytest.raises(NoStreamResponseError):
        await artifacts.answered(young.call)
    assert young.calls == 3


async def test_another_error_is_not_tried_again() -> None:
    calls: list[int] = []

    async def fail() -> None:
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (any message)
        await artifacts.answered(fail)
    assert calls == [1]
