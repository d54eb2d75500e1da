"""GET /openapi.json."""

from __future__ import annotations

import importlib
import re
from typing import Any

import httpx

from bitinglip.events import asyncapi
from bitinglip.gateway import openapi
from bitinglip.gateway.app import ROUTES
from bitinglip.gateway.door import Resource
from bitinglip.tasks.parameters import KINDS


def test_the_document_lists_every_route_and_no_other() -> None:
    served = {
        (re.sub(r":path\}", "}", route.path), method.lower())
        for route in ROUTES
        if isinstance(route.endpoint, Resource)
        for method in route.endpoint.methods
        if method != "HEAD"
    }
    told = {(path, method) for path, item in openapi.document()["paths"].items() for method in item}
    assert told == served


def test_the_body_of_a_task_depends_on_its_kind() -> None:
    schemas = openapi.document()["components"]["schemas"]
    body = schemas["SubmitTask"]
    assert set(body["discriminator"]["mapping"]) == set(KINDS)
    for kind, reference in body["discriminator"]["mapping"].items():
        one = schemas[reference.rpartition("/")[2]]
        assert one["properties"]["kind"]["const"] == kind
        assert one["additionalProperties"] is False
        assert one["properties"]["params"]["$ref"].rpartition("/")[2] in schemas


def test_every_reference_leads_somewhere() -> None:
    document = openapi.document()

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    for reference in references(document):
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in document["components"]["schemas"]


def test_the_document_is_valid() -> None:
    validator = importlib.import_module("openapi_spec_validator")
    validator.validate(openapi.document())


async def test_the_document_is_served(client: httpx.AsyncClient) -> None:
    response = await client.get("/openapi.json")
    assert response.json() == openapi.document()
    operation_ids = [one["operationId"] for item in response.json()["paths"].values() for one in item.values()]
    assert len(operation_ids) == len(set(operation_ids))


async def test_the_asyncapi_document_is_served(client: httpx.AsyncClient) -> None:
    answer = await client.get("/asyncapi.json")
    assert answer.json() == asyncapi.document()
