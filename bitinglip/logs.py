"""How a process prints its log: to standard error, as text or as JSON lines."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

from bitinglip.settings import Log


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


_latest = Log()


def configure_logging(settings: Log) -> None:
    """Send this process's log to standard error, from the set severity on."""
    global _latest  # a process has one log
    _latest = settings
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if settings.format == "json" else text)
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)


def logging_settings() -> Log:
    """Return how this process prints its log, for one that it starts."""
    return _latest
