"""`bitinglip events replay`: the log once more: on the screen, into another gateway, or in the simulator."""

from __future__ import annotations

from typing import Annotated

import typer

from bitinglip.cli import render, replayinto, whatif
from bitinglip.cli.client import Client, ServerEvent
from bitinglip.cli.events import Stream, one_line
from bitinglip.cli.options import Json, Url, client, settings
from bitinglip.cli.recorded import Pace, Part, place, speed
from bitinglip.errors import InvalidInput


def replay(
    from_: Annotated[str, typer.Option("--from", help="Sequence or time to begin with.")] = "1",
    to: Annotated[str | None, typer.Option("--to", help="Last sequence, or time; none: the end of now.")] = None,
    speed_: Annotated[
        str, typer.Option("--speed", help="10x: ten times as fast as it was; max: without pauses.")
    ] = "1x",
    stream: Annotated[Stream, typer.Option(help="Which facts.")] = Stream.tasks,
    types: Annotated[list[str] | None, typer.Option("--types", help="Only these types; may be repeated.")] = None,
    into: Annotated[str | None, typer.Option(help="Gateway that is asked for the recorded tasks once more.")] = None,
    key: Annotated[str | None, typer.Option(help="API key of that gateway.")] = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Simulate what would have been.")] = False,
    cards: Annotated[str | None, typer.Option(help="With --what-if: on these cards, as 8x8GB,2x24GB.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="With --what-if: ours or fifo; may be repeated.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print recorded events at the pace at which they came; ask another gateway for the same; or simulate them.

    Private tasks are not submitted again: what they were asked is not in the log.
    """
    if into is not None and what_if:
        raise InvalidInput(field="--into", problem="not with --what-if")
    begin, end = place("--from", from_), place("--to", to) if to is not None else None
    gateway, pace = client(url), Pace(speed(speed_))
    if what_if:
        whatif.run(gateway, begin, end, cards, policy or ["ours"], as_json=as_json)
    elif into is not None:
        arrivals = Part(Stream.tasks.value, begin, end, ("task.submitted",))
        target = Client(settings(gateway__api_key=key) if key is not None else settings(), into)
        raise typer.Exit(replayinto.run(gateway, target, arrivals, pace, as_json=as_json))
    else:
        part = Part(stream.value, begin, end, tuple(types or ()))
        for event in pace.keep(part.events(gateway)):
            _print(event, as_json=as_json)


def _print(event: ServerEvent, *, as_json: bool) -> None:
    render.json(event.data) if as_json else render.line(one_line(event))
