"""Sees to it that QUEUE is sourced again soon after the log has moved to another server of the cluster.

nats-server (2.15) looks only every 10 s whether a source has fallen silent, and so took up to 40 s. A new leader of
QUEUE asks the log's new leader at once, but only once: if that had none yet, nobody answers. So the leader is asked to
step down, and again if that came too early.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import random
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import ask
from bitinglip.events.ending import end
from bitinglip.events.streams import QUEUE, TASKS

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Seconds between two looks, about: gateways do not all look at the same time."""
LOOKS = 40
ANSWER_S = 1.0
"""How long an answer is waited for: what has no leader gives none, and has one a moment later."""
SILENT_NS = 2.5e9
"""A source that works gives a sign of life each second."""
SETTLE_S = 3.0
"""How long a new leader may take to hear of its source (0.7 s were seen)."""
ASKS_S = 0.3
"""By when a new leader has asked for its source; the server (2.15) takes 0.1 to 0.2 s."""


class Sourcing:
    """Watches for a new leader of TASKS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._subscription: Subscription | None = None
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._forget = connection.on_reconnect(self._moved.set)

    async def start(self) -> None:
        """Begin.

        Raises:
            NoServer: the connection is away.
        """
        self._subscription = await self._connection.subscribe(subjects.LOG_LEADER_ELECTED, self._elected)
        self._task = asyncio.create_task(self._run(), name="sourcing")

    async def close(self) -> None:
        """End."""
        self._forget()
        await end(lambda: [self._task])
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    async def _elected(self, _: Msg) -> None:
        self._moved.set()

    async def _run(self) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self._follow()

    async def _follow(self) -> None:
        """Look for a while: a source may seem well until it is missed. A server on its own has no other leader."""
        for _ in range(LOOKS):
            await asyncio.sleep(random.uniform(0.5, 1.5) * LOOK_S)  # noqa: S311  (no secret)
            try:
                log_led_s = led_s(await ask(self._connection, f"STREAM.INFO.{TASKS}", {}, ANSWER_S))
                told = await ask(self._connection, f"STREAM.INFO.{QUEUE}", {}, ANSWER_S)
                if not told.get("cluster", {}).get("replicas"):
                    return
                if not is_silent(told, log_led_s):
                    continue
                log.info("QUEUE has not heard of the log since that moved; its leader steps down")
                await ask(self._connection, f"STREAM.LEADER.STEPDOWN.{QUEUE}", {}, ANSWER_S)
            except NoServer as error:
                log.debug("no look at the queue's source: %s", error)


def is_silent(told: dict[str, Any], log_led_s: float) -> bool:
    """Whether QUEUE's source is silent, of what the server tells of QUEUE; the log has had its leader for so long.

    Its leader is deaf if it had asked for the source before that, and has not heard of it since. One that never heard
    of it (an age below 0) may be too new for that.
    """
    queue_led_s = led_s(told)
    asked_too_early = queue_led_s > log_led_s + ASKS_S
    for source in told.get("sources") or ():
        age_ns = source.get("active", -1)
        if age_ns > SILENT_NS:
            return True
        heard = 0 <= age_ns <= log_led_s * 1e9
        if not heard and (asked_too_early or (age_ns < 0 and queue_led_s > SETTLE_S)):
            return True
    return False


def led_s(told: dict[str, Any]) -> float:
    """Return for how long a stream has had its leader, by that server's own clock; none has led for 0 s."""
    since = told.get("cluster", {}).get("leader_since")
    return (datetime.fromisoformat(told["ts"]) - datetime.fromisoformat(since)).total_seconds() if since else 0.0
