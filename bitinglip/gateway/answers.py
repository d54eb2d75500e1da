"""Answers to SQL: JSON in one piece, Arrow and CSV batch by batch, all of them bounded, and ended with their caller.

What is small is made before the first byte leaves: what goes wrong until then is a problem as any other one, and
whether rows are missing is told in a header. A larger answer that does not come to its end breaks the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import BitingLipError, QueryRefused
from bitinglip.gateway import leaving
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.leaving import CallerLeft, Pieces
from bitinglip.gateway.responses import json
from bitinglip.projections.export import Form, writer
from bitinglip.projections.sandbox import Bounds, Question

Format = Literal["json", "arrow", "csv"]
FORMATS: dict[Format, str] = {
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
    "csv": "text/csv",
}
TRUNCATED = "X-Truncated"
"""Header of a small Arrow or CSV answer: `true` if there were more rows than it may have."""
HEAD_BYTES = 2**20
"""What is made of an answer before its first byte leaves."""
log = logging.getLogger(__name__)


async def answer(
    request: Request, question: Question, timeout_s: float | None, max_rows: int | None, form: Format
) -> Response:
    """Answer a question in a form, as long and as much as asked for, and within the settings.

    Raises:
        QueryRefused, QueryTimeout, QueriesBusy: see there.
    """
    bounds = _bounds(gateway_of(request), timeout_s, max_rows, form)
    try:
        if form == "json":
            return await leaving.while_here(request, _whole(gateway_of(request), question, bounds))
        return await leaving.while_here(request, _begun(gateway_of(request), question, bounds, form))
    except CallerLeft:
        return leaving.nobody()


def _bounds(gateway: Gateway, timeout_s: float | None, max_rows: int | None, form: Format) -> Bounds:
    limits = gateway.settings.projections
    most = min(timeout_s or limits.query_timeout_s, limits.query_timeout_s)
    if form == "json":
        return Bounds(most, min(max_rows or limits.query_max_rows, limits.query_max_rows))
    rows = min(max_rows or limits.query_export_max_rows, limits.query_export_max_rows)
    return Bounds(most, rows, limits.query_export_max_bytes)


async def _whole(gateway: Gateway, question: Question, bounds: Bounds) -> Response:
    started = time.perf_counter()
    table = await gateway.readmodel.sandbox.ask(question, bounds)
    elapsed_ms = round((time.perf_counter() - started) * 1000, 3)
    return json({"columns": table.columns, "rows": table.rows, "truncated": table.truncated, "elapsed_ms": elapsed_ms})


async def _begun(gateway: Gateway, question: Question, bounds: Bounds, form: Form) -> Response:
    """Make the head of the answer: all of it if it is small."""
    pieces = _pieces(gateway, question, bounds, form)
    head: list[bytes] = []
    try:
        while sum(map(len, head)) < HEAD_BYTES:
            piece = await anext(pieces)
            if isinstance(piece, bool):
                await pieces.aclose()
                return Response(b"".join(head), 200, {TRUNCATED: str(piece).lower()}, FORMATS[form])
            head.append(piece)
    except BaseException:
        await pieces.aclose()
        raise
    return Pieces(_rest(b"".join(head), pieces), {}, FORMATS[form])


async def _pieces(gateway: Gateway, question: Question, bounds: Bounds, form: Form) -> AsyncGenerator[bytes | bool]:
    """Yield the answer in pieces, then whether rows are missing."""
    writing, begun = writer(form), False
    async with aclosing(gateway.readmodel.sandbox.stream(question, bounds)) as batches:
        async for batch in batches:
            if isinstance(batch, bool):
                yield writing.end()
                yield batch
            else:
                yield await asyncio.to_thread(writing.batch if begun else writing.begin, batch)
                begun = True


async def _rest(head: bytes, pieces: AsyncGenerator[bytes | bool]) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        yield head
        try:
            async for piece in pieces:
                if isinstance(piece, bytes):
                    yield piece
                elif piece:
                    raise QueryRefused(problem="there are more rows than `projections.query_export_max_rows`")
        except BitingLipError as error:
            log.warning("an answer was cut, and its connection with it: %s", error)
            raise
