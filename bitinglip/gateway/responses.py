"""Answers as JSON, written by orjson."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON: plain values, and frozen rows as they are."""
    return Response(orjson.dumps(content, option=orjson.OPT_UTC_Z), status, headers, "application/json")
