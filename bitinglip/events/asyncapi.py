"""The AsyncAPI 3.0 document of the log: each stream's subjects as channels, each event type as a message. Pure.

It is written from the side of who reads the log: every operation receives.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic.json_schema import models_json_schema

import bitinglip
from bitinglip.events.catalogue import stream_of, subjects_of, types
from bitinglip.events.envelope import CONTENT_TYPE
from bitinglip.events.registry import Event
from bitinglip.events.streams import QUEUE, SCHEDULES, TASKS, declarations
from bitinglip.settings import Nats

Document = dict[str, Any]
SCHEMAS = "#/components/schemas/{model}"
NOTES = {
    "bl.timer.{task_id}.{what}": (TASKS, "A timer: the server stores the message of its target at its time."),
    "bl.due.{task_id}.{what}": (TASKS, "A timer's time has come; a reactor looks at the task."),
    "bl.alarm.{schedule_id}.{what}": (SCHEDULES, "The next time of a schedule, and that it has come."),
}
"""Subjects whose messages are no events: they only make the server, or a reactor, do something."""
PARAMETERS = {
    "name": "Name of the saved query, as one token.",
    "task_id": "Id of the task (ULID).",
    "batch_id": "Id of the batch (ULID).",
    "schedule_id": "Id of the schedule (ULID).",
    "worker_id": "Name of the worker.",
    "node_id": "Name of the node.",
    "model": "Reference of the model as one token: all but letters, digits, `-` and `_` is `=` and two hex digits.",
    "about": "Name of a stream, or `readmodel`.",
    "lane": "`interactive`, `normal` or `batch`.",
    "queue": "The model as one token; `~` and its class follow for work that only some workers may take.",
    "part": "Name of the request's part of the batch.",
    "what": "Number of an attempt, `expiry`, `after`, `set` or `due`.",
    "event": "The type's second word.",
}


def document() -> Document:
    """Return the document."""
    channels = _channels()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "BitingLip's event log",
            "version": bitinglip.__version__,
            "description": "Facts in NATS JetStream streams, as CloudEvents 1.0 in structured JSON mode.",
            "license": {"name": "MIT"},
            "tags": [{"name": each.name, "description": each.description} for each in declarations(Nats())],
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {
            "nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "The NATS server, with JetStream."}
        },
        "channels": channels,
        "operations": {f"read_{name}": _operation(name, channel) for name, channel in channels.items()},
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels() -> Document:
    found: Document = {}
    for cls in types():
        for address in subjects_of(cls):
            text = (inspect.getdoc(cls) or "").partition("\n")[0]
            found[_name(address)] = _channel(address, stream_of(cls), text, [cls.type])
    for address, (stream, text) in NOTES.items():
        found[_name(address)] = _channel(address, stream, text, ["note"])
    tasks = [cls.type for cls in types() if cls.type.startswith("task.")]
    live = "Republished as it is stored; headers bear the sequence (`Nats-Sequence`)."
    found["live_task"] = _channel("bl.live.task.{task_id}.{event}", TASKS, live, tasks)
    work = "What is ready to run, copied from TASKS by the server; taken out when a task has ended."
    ready = ["task.submitted", "task.queued"]
    found["queue"] = _channel("bl.queue.{lane}.{queue}.{task_id}", QUEUE, work, ready)
    return found


def _channel(address: str, stream: str, text: str, messages: list[str]) -> Document:
    names = re.findall(r"\{(\w+)\}", address)
    return {
        "address": address,
        "description": text,
        "tags": [{"name": stream}],
        "parameters": {name: {"description": PARAMETERS[name]} for name in names},
        "messages": {_key(name): {"$ref": f"#/components/messages/{_key(name)}"} for name in messages},
        "x-stream": stream,
    }


def _operation(name: str, channel: Document) -> Document:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "summary": channel["description"],
        "tags": channel["tags"],
    }


def _messages() -> Document:
    note = {
        "name": "note",
        "title": "note",
        "contentType": "application/json",
        "payload": {"type": "object", "properties": {"id": {"type": "string"}, "due_at": {"type": "string"}}},
    }
    return {_key(cls.type): _message(cls) for cls in types()} | {"note": note}


def _message(cls: type[Event]) -> Document:
    text = inspect.getdoc(cls) or ""
    narrowed = {
        "type": {"const": cls.type},
        "dataschema": {"const": cls.schema_urn()},
        "data": {"$ref": SCHEMAS.format(model=cls.__name__)},
    }
    return {
        "name": cls.type,
        "title": cls.type,
        "summary": text.partition("\n")[0],
        "description": text,
        "contentType": CONTENT_TYPE,
        "payload": {"allOf": [{"$ref": SCHEMAS.format(model="CloudEvent")}, {"properties": narrowed}]},
        "examples": [{"payload": {"type": cls.type, "dataschema": cls.schema_urn(), "data": cls.example}}],
        "x-lasting": cls.lasting,
        "x-version": cls.version,
    }


def _schemas() -> Document:
    _, generated = models_json_schema([(cls, "validation") for cls in types()], ref_template=SCHEMAS)
    text = {"type": "string"}
    attributes = ("id", "source", "type", "subject", "dataschema", "correlationid", "causationid")
    attributes += ("actorkey", "actoraddress", "requestid")
    envelope = {
        "type": "object",
        "title": "CloudEvent",
        "description": "CloudEvents 1.0; what an event says beside its data.",
        "required": ["specversion", "id", "source", "type", "subject", "time", "dataschema", "data"],
        "properties": {name: text for name in attributes}
        | {
            "specversion": {"const": "1.0"},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "data": {"type": "object"},
        },
    }
    return {"CloudEvent": envelope, **generated["$defs"]}


def _name(address: str) -> str:
    """Return a channel's key: what does not differ in its subject, and `ready` for one that says where work waits."""
    words = [word for word in address.split(".")[1:] if not word.startswith("{")]
    return "_".join([*words, *(["ready"] if address.endswith("{queue}") else [])])


def _key(type_name: str) -> str:
    return type_name.replace(".", "_")
