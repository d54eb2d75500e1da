"""Reading a request's JSON body into a model of what may be in it."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from bitinglip.errors import MalformedBody
from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of
from bitinglip.tasks.commands import invalid_input

_B = TypeVar("_B", bound=BaseModel)


async def read(request: Request, model: type[_B]) -> _B:
    """Read a request's body.

    Raises:
        UnsupportedMediaType, PayloadTooLarge, MalformedBody: see there.
        InvalidInput: a field is refused; the error names it.
    """
    return parse(model, await requests.read_json(request, gateway_of(request).settings.gateway.max_body_bytes))


async def read_if_given(request: Request, model: type[_B]) -> _B:
    """Read a body that may be left out: then its defaults hold.

    Raises:
        UnsupportedMediaType, PayloadTooLarge, MalformedBody, InvalidInput: as for one that is given.
    """
    return await read(request, model) if requests.header(request, b"content-type") else model()


def parse(model: type[_B], body: bytes) -> _B:
    """Read a body's bytes.

    Raises:
        MalformedBody: they are not JSON.
        InvalidInput: a field is refused; the error names it.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise MalformedBody(problem=error.errors()[0]["msg"]) from error
        raise invalid_input(error) from error
