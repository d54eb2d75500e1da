"""A stranger's SQL, bounded: one SELECT in a read-only transaction, no files, no network, so long and so much."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

import pyarrow as pa

from bitinglip.errors import QueryRefused, QueryTimeout
from bitinglip.projections.database import INTERRUPTED, Database, Params, WriteError

THREADS = 2
ROWS_PER_BATCH = 1_000
MAX_ANSWER_BYTES = 32 * 2**20
"""Largest answer, as DuckDB holds it."""
GRACE_S = 2.0
"""Seconds that DuckDB gets to notice an interruption before its caller is answered without it."""
_EXACT = 2**63


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to a query; every value can be written as JSON."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    """Whether there were more rows than asked for."""


class Sandbox:
    """Runs strangers' queries on threads of their own."""

    def __init__(self, run: Callable[[Callable[[Database], Any]], Any]) -> None:
        self._run = run

    async def run(self, sql: str, params: Params, timeout_s: float, max_rows: int) -> Table:
        """Run one SELECT.

        Raises:
            QueryRefused: it is not one read-only statement, or DuckDB refuses it; the error says why.
            QueryTimeout: it ran longer than `timeout_s`, waiting for a free thread included.
        """
        query = _Query(sql, params, max_rows)
        running = asyncio.ensure_future(self._run(query.run))
        try:
            await asyncio.wait([running], timeout=timeout_s)
        finally:
            query.stop()
        if not running.done():
            await asyncio.wait([running], timeout=GRACE_S)
        if not running.done() or running.exception() is _STOPPED:
            running.add_done_callback(_forget)
            raise QueryTimeout(limit_s=timeout_s)
        return running.result()
