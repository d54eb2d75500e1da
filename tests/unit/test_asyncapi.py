"""The AsyncAPI document: valid by the standard's own schema, whole, and its examples are what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from bitinglip.events import subjects
from bitinglip.events.asyncapi import document
from bitinglip.events.catalogue import types
from scripts.golden_events import FOLDER

STANDARD = orjson.loads((Path(__file__).parents[1] / "golden/asyncapi/3.0.0.json").read_bytes())
DOCUMENT = document()


def test_it_is_valid_by_the_schema_of_the_standard() -> None:
    found = Draft7Validator(STANDARD).iter_errors(DOCUMENT)
    assert [f"{error.json_path}: {error.message[:200]}" for error in found] == []


def test_one_that_lacks_something_is_not_valid() -> None:
    without = {name: value for name, value in DOCUMENT.items() if name != "info"}
    assert not Draft7Validator(STANDARD).is_valid(without)


def test_every_reference_leads_somewhere() -> None:
    for reference in _references(DOCUMENT):
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_type_is_a_message_of_a_channel_and_every_channel_is_read() -> None:
    named = {name for channel in DOCUMENT["channels"].values() for name in channel["messages"]}
    assert named == {*(cls.type.replace(".", "_") for cls in types()), "note"}
    read = {operation["channel"]["$ref"].rpartition("/")[2] for operation in DOCUMENT["operations"].values()}
    assert read == set(DOCUMENT["channels"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_golden_events_are_what_the_messages_say(path: Path) -> None:
    event = orjson.loads(path.read_bytes())
    message = DOCUMENT["components"]["messages"][event["type"].replace(".", "_")]
    if event["dataschema"].endswith(f":{message['x-version']}"):
        schema = {"$ref": "#/payload", "payload": message["payload"], "components": DOCUMENT["components"]}
        Draft202012Validator(schema).validate(event)


def test_the_subjects_are_those_of_the_grammar() -> None:
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    task_id = "01JZ0000000000000000000000"
    made = {
        subjects.worker_subject("{worker_id}", "heartbeat"),
        subjects.node_subject("{node_id}", "heartbeat"),
        subjects.batch_subject("{batch_id}", "batch.extended", "{part}"),
        subjects.ledger_subject("{about}", "archived"),
        str(subjects.TaskSubject(subjects.TaskId(task_id), "assigned")).replace(task_id, "{task_id}"),
    }
    assert made <= addresses


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return here + [each for part in value.values() for each in _references(part)]
    return [each for part in value for each in _references(part)] if isinstance(value, list) else []
