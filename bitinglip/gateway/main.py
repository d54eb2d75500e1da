"""The gateway process: `python -m bitinglip.gateway.main`, configured by the environment.

Says one JSON line on standard output when it listens; its log goes to standard error.
"""

from __future__ import annotations

import gc
import os
import sys

import orjson
import uvloop

from bitinglip.errors import BitingLipError
from bitinglip.gateway.app import serve
from bitinglip.logs import configure_logging
from bitinglip.settings import load


def main() -> int:
    """Run the process until SIGTERM or SIGINT; returns its exit code."""
    try:
        settings, _ = load()
        configure_logging(settings.log)
        uvloop.run(serve(settings, _say_ready))
    except BitingLipError as error:
        sys.stderr.write(f"error: {error}\nremedy: {error.remedy}\n")
        return error.exit_code
    finally:
        gc.unfreeze()
    return 0


def _say_ready(url: str) -> None:
    gc.freeze()  # what is there by now stays: no collection need look at it again
    sys.stdout.write(orjson.dumps({"ready": "gateway", "url": url, "pid": os.getpid()}).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
