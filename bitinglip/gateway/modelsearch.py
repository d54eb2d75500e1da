"""Searching for models: on the hub, with a mark of how each would fit here; offline, among what is known."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.gateway import requests
from bitinglip.gateway.responses import json


async def search(request: Request) -> Response:
    """Answer `GET /v1/models:search`."""
    requests.only(request)
    return json({"models": []})
