"""Running jobs on an engine process and gathering what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitinglip.workers.engine import (
    JobAnswer,
    JobCancelled,
    JobFailed,
    JobProgressed,
    JobSpec,
    JobSucceeded,
    Loaded,
    ModelSpec,
)
from bitinglip.workers.enginehost import EngineHost


@dataclass
class Said:
    """What the engine said of one job."""

    ticks: list[JobProgressed] = field(default_factory=list[JobProgressed])
    answers: list[JobAnswer] = field(default_factory=list[JobAnswer])

    @property
    def answer(self) -> JobAnswer:
        """The one final answer."""
        (answer,) = self.answers
        return answer

    @property
    def result(self) -> dict[str, Any]:
        """The result of a job that succeeded."""
        assert isinstance(self.answer, JobSucceeded), self.answer
        return self.answer.result

    @property
    def text(self) -> str:
        """All pieces of text that were streamed."""
        return "".join(tick.text or "" for tick in self.ticks)

    @property
    def reasoning(self) -> str:
        """All pieces of reasoning that were streamed."""
        return "".join(tick.reasoning or "" for tick in self.ticks)


async def load(host: EngineHost, model: ModelSpec) -> str:
    """Load a model; returns its key."""
    loaded = await host.load(model)
    assert isinstance(loaded, Loaded), loaded
    return loaded.model_key


async def run(
    host: EngineHost, model: ModelSpec, *params: dict[str, Any], files: Mapping[str, Path] | None = None
) -> list[Said]:
    """Run jobs together; returns what was said of each, in order. `files`: the artifacts that they name."""
    key = await load(host, model)
    said = {str(index): Said() for index in range(len(params))}
    paths = {name: str(path) for name, path in (files or {}).items()}
    jobs = [JobSpec(task_id=task_id, params=each, files=paths) for task_id, each in zip(said, params, strict=True)]
    async for messages in host.run(key, jobs):
        for message in messages:
            if isinstance(message, JobProgressed):
                assert not said[message.task_id].answers, "a tick after the answer"
                said[message.task_id].ticks.append(message)
            elif isinstance(message, JobSucceeded | JobFailed | JobCancelled):
                said[message.task_id].answers.append(message)
    return list(said.values())
