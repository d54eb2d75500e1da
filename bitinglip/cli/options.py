"""Options that many commands share, and the settings that come of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitinglip.cli.client import Client
from bitinglip.settings import Settings, load

Url = Annotated[str | None, typer.Option("--url", help="Gateway to speak to.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="MOMENT",
        help="As it was then: 2026-01-31T12:00:00Z, '10 min ago', or the sequence of an event.",
        show_default=False,
    ),
]
NatsUrl = Annotated[str | None, typer.Option("--nats-url", help="NATS server to use.", show_default=False)]
Model = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model to serve, REFERENCE or REFERENCE=FOLDER; may be repeated.", show_default=False),
]


def settings(**flags: Any) -> Settings:
    """Return the settings with these flags; dots of a setting's name are written as two underscores.

    Raises:
        InvalidConfig: a value is refused.
    """
    return load({name.replace("__", "."): value for name, value in flags.items()})[0]


def client(url: str | None) -> Client:
    """Return a client of the gateway that is meant."""
    return Client(settings(), url)


def models(named: list[str] | None) -> tuple[str, ...] | None:
    """Return the models of a repeated option; none if it was not given."""
    return tuple(named) if named else None
