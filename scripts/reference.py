"""Writes the generated pages of the reference: events, settings, errors. `--check` only says whether they are stale."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from bitinglip import errors
from bitinglip.errors import BitingLipError, Defect, Denied, Rejected, Unavailable
from bitinglip.events.asyncapi import document
from bitinglip.events.catalogue import MODULES
from bitinglip.events.registry import REGISTRY, Event
from bitinglip.settings import environment_name, iter_fields
from scripts import projections_page

FOLDER = Path("docs/reference")
HEAD = "<!-- Written by `make docs`; change the code, not this page. -->\n\n"


def main() -> int:
    """Write the pages, or with --check return 1 if one is stale."""
    check = "--check" in sys.argv[1:]
    stale: list[str] = []
    for name, text in (
        ("events.md", events()),
        ("settings.md", settings()),
        ("errors.md", error_pages()),
        ("asyncapi.json", asyncapi()),
        ("projections.md", HEAD + projections_page.page()),
    ):
        path = FOLDER / name
        if not path.is_file() or path.read_text("utf-8") != text:
            stale.append(str(path))
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
    if check and stale:
        sys.stdout.write(f"stale: {', '.join(stale)}; run `make docs`\n")
        return 1
    return 0


def events() -> str:
    """Return the page of the event types."""
    parts = [HEAD + "# Events\n\nEach is the `data` of a CloudEvent (docs/events.md says how they travel).\n"]
    for module, stream in MODULES.items():
        parts.append(f"\n## Stream {stream}\n")
        parts += [_event(cls) for cls in REGISTRY.values() if cls.__module__ == module.__name__]
    return "".join(parts)


def asyncapi() -> str:
    """Return the AsyncAPI document."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def settings() -> str:
    """Return the page of the settings."""
    rows = [
        f"| `{name}` | `{environment_name(name)}` | {_default(field)} | {field.description} |"
        for name, field in iter_fields()
    ]
    head = "| setting | environment | default | meaning |\n| --- | --- | --- | --- |\n"
    return (
        HEAD + "# Settings\n\nA flag beats the environment, that beats the file that `BITINGLIP_CONFIG` names (TOML), "
        "and that the default. `bitinglip config show` prints what is in force.\n\n" + head + "\n".join(rows) + "\n"
    )


def error_pages() -> str:
    """Return the page of the errors."""
    branches = {
        Rejected: "the caller can act",
        Denied: "the key's owner can act",
        Unavailable: "time can act",
        Defect: "we must act",
    }
    parts = [
        HEAD + "# Errors\n\nOver HTTP each is a problem document (RFC 9457) with type `urn:bitinglip:error:<code>`.\n"
    ]
    for branch, who in branches.items():
        parts.append(
            f"\n## {branch.__name__}: {who}\n\n| code | status | exit | what | remedy |\n| --- | --- | --- | --- | --- |\n"  # noqa: E501
        )
        parts += [_error(cls) for cls in _subclasses(branch)]
    return "".join(parts)


def _event(cls: type[Event]) -> str:
    documentation = inspect.cleandoc(cls.__doc__ or "")
    example = orjson.dumps(cls.example, option=orjson.OPT_INDENT_2).decode()
    rows = "".join(f"| `{name}` | `{_type(field.annotation)}` |\n" for name, field in cls.model_fields.items())
    return (
        f"\n### `{cls.type}` (version {cls.version})\n\n{documentation}\n\n| field | type |\n| --- | --- |\n{rows}"
        f"\n```json\n{example}\n```\n"
    )


def _type(annotation: Any) -> str:
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    return (
        text.replace("typing.", "")
        .replace("bitinglip.events.task.", "")
        .replace("bitinglip.events.worker.", "")
        .replace("bitinglip.ids.", "")
        .replace("|", "or")
    )


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "`$XDG_DATA_HOME/bitinglip`"
    default = field.default
    if default is None or default == ():
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _error(cls: type[BitingLipError]) -> str:
    return f"| `{cls.code}` | {cls.status} | {cls.exit_code} | {cls.template} | {cls.remedy} |\n".replace("\n  ", " ")


def _subclasses(branch: type[BitingLipError]) -> Iterator[type[BitingLipError]]:
    declared = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, branch)]
    yield from declared


if __name__ == "__main__":
    sys.exit(main())
