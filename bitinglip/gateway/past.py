"""`?as_of=`: answering about a moment of the past instead of now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request

from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.pastviews import told
from bitinglip.projections.moment import Moment
from bitinglip.projections.past import Past

AS_OF = "as_of"
_T = TypeVar("_T")


async def moment_of(request: Request) -> Moment | None:
    """Return the moment that a request is about; none if it is about now.

    Raises:
        NotAMoment, MomentToCome, MomentBeforeLog: it names none, or none of this log's.
        ProjectionBehind: the read model has not come so far in time.
        NoServer: the log cannot be asked.
    """
    text = requests.one(request, AS_OF)
    return None if text is None else await gateway_of(request).readmodel.past.moment(text)


async def at(request: Request, moment: Moment, question: Callable[[Past], _T]) -> _T:
    """Return the answer to a question about the state at a moment.

    Raises:
        PastTimeout, PastTooLarge: there is too much of it.
    """
    return await gateway_of(request).readmodel.past.ask(moment, question)


async def listed(request: Request, name: str, question: Callable[[Past], list[Any]]) -> dict[str, Any] | None:
    """Return the answer that lists what there was at the moment of a request; none if it is about now.

    Raises:
        NotAMoment, MomentToCome, MomentBeforeLog, ProjectionBehind, NoServer: see `moment_of`.
        PastTimeout, PastTooLarge: see `at`.
    """
    if (moment := await moment_of(request)) is None:
        return None
    return {name: await at(request, moment, question), AS_OF: told(moment)}
