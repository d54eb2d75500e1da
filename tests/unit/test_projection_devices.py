"""What devices did, by the minute: the SQL says what the plain fold says, however the log is cut."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.node import NodeDevice, NodeHeartbeat
from bitinglip.events.worker import DeviceReading, WorkerHeartbeat, WorkerStarted
from bitinglip.projections.database import Database
from bitinglip.projections.writer import write
from tests.unit.projection_support import START, cut, dump, fresh_database, message, prune

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
METRICS = ("utilisation_percent", "memory_used_bytes", "temperature_c", "power_w")
NAMES = ("utilisation_{}_percent", "memory_used_{}_bytes", "temperature_{}_c", "power_{}_w")
WORKERS = {"rig-1-0": "rig-1", "rig-1-1": "rig-1", "rig-2-0": "rig-2"}
PAUSES_S = (0.001, 0.5, 0.5, 2.0, 2.0, 2.0, 10.0, 10.0, 59.0, 61.0, 300.0, 40_000.0)

NEVER = datetime(1, 1, 1)  # noqa: DTZ001  (the tables' times are UTC, and do not say so)

Reading = dict[str, Any]
Key = tuple[str, str, datetime]


def _reading(chance: random.Random) -> Reading:
    told: Reading = {
        "utilisation_percent": chance.choice([None, 0.0, 12.5, 100.0]),
        "memory_used_bytes": chance.choice([None, 1, 2**40]),
        "temperature_c": chance.choice([None, 41.0, 55.125]),
        "power_w": chance.choice([None, 20.0, 181.517, 350.003]),
        "memory_total_bytes": chance.choice([None, 2**41]),
    }
    return told if chance.random() < 0.9 else dict.fromkeys(told)


@st.composite
def logs(draw: Any) -> list[RawMessage]:
    """Draw the heartbeats of some nodes and workers, which are started now and then."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    now, messages = START, list[RawMessage]()
    for sequence in range(1, chance.randint(2, 80)):
        now += timedelta(seconds=chance.choice(PAUSES_S))
        worker_id = chance.choice(list(WORKERS))
        node_id = WORKERS[worker_id]
        about = {"worker_id": worker_id, "node_id": node_id}
        match chance.choice(("started", "beat", "beat", "node", "node")):
            case "started":
                device = chance.choice(["cuda:0", "cuda:1, cuda:0", "auto"])
                event = WorkerStarted.model_validate(WorkerStarted.example | about | {"device": device})
            case "beat":
                reading = chance.choice([None, DeviceReading(**_reading(chance)), DeviceReading(**_reading(chance))])
                event = WorkerHeartbeat.model_validate(WorkerHeartbeat.example | about | {"device": reading})
            case _:
                names = chance.choice([["cuda:0"], ["cuda:0", "cuda:1"], []])
                devices = [NodeDevice(device=name, **_reading(chance)) for name in names]
                changes = {"node_id": node_id, "devices": devices}
                event = NodeHeartbeat.model_validate(NodeHeartbeat.example | changes)
        whom = node_id if isinstance(event, NodeHeartbeat) else worker_id
        messages.append(message(event, sequence, about=whom, at=now))
    return messages


class Fold:
    """The rows so far, by node, device and bucket: of ten minutes before `coarse_until`, else of one."""

    def __init__(self, coarse_until: datetime = NEVER) -> None:
        self._coarse_until = coarse_until
        self.readings: dict[Key, list[Reading]] = {}
        self.energy_mj: dict[Key, int] = {}
        self._devices: dict[str, str] = {}
        self._powers: dict[tuple[str, str], tuple[datetime, float]] = {}

    def apply(self, message: RawMessage) -> None:
        recorded = decode(message, "WORKERS")
        at = recorded.recorded_at.replace(tzinfo=None)
        match recorded.event:
            case WorkerStarted(worker_id=worker_id, device=device):
                self._devices[worker_id] = device.partition(",")[0]
            case WorkerHeartbeat(worker_id=worker_id, node_id=node_id, device=DeviceReading() as told):
                if worker_id in self._devices:
                    self._read(at, node_id, self._devices[worker_id], told.model_dump())
            case NodeHeartbeat(node_id=node_id, devices=devices):
                for each in devices:
                    self._read(at, node_id, each.device, each.model_dump())
            case _:
                pass

    def _read(self, at: datetime, node_id: str, device: str, told: Reading) -> None:
        if all(told[name] is None for name in (*METRICS, "memory_total_bytes")):
            return
        minute = at.replace(second=0, microsecond=0)
        bucket = minute - timedelta(minutes=minute.minute % 10) if minute < self._coarse_until else minute
        key = (node_id, device, bucket)
        self.readings.setdefault(key, []).append(told)
        if (power_w := told["power_w"]) is None:
            return
        before = self._powers.get((node_id, device))
        self._powers[node_id, device] = (at, power_w)
        if before is not None and at - before[0] <= timedelta(minutes=1):
            drawn_mj = (before[1] + power_w) / 2 * ((at - before[0]) // timedelta(microseconds=1)) / 1e3
            self.energy_mj[key] = self.energy_mj.get(key, 0) + math.floor(drawn_mj + 0.5)

    def rows(self) -> list[tuple[Any, ...]]:
        return sorted(
            (*key, len(told), *self._of(told), self.energy_mj.get(key, -1)) for key, told in self.readings.items()
        )

    def _of(self, told: list[Reading]) -> Iterable[tuple[Any, ...]]:
        for metric in METRICS:
            values = [each[metric] for each in told if each[metric] is not None]
            total = sum(Decimal(str(value)) for value in values)
            mean = float(total) / len(values) if values else -1
            yield (min(values, default=-1), max(values, default=-1), total, len(values), mean)


def _told(database: Database) -> list[tuple[Any, ...]]:
    parts = [
        f"({', '.join(f'coalesce({column}, -1)' for column in (name.format('min'), name.format('max')))}, "
        f"coalesce({name.partition('_{}')[0]}_sum, 0), {name.partition('_{}')[0]}_readings, "
        f"coalesce({name.format('avg')}, -1))"
        for name in NAMES
    ]
    columns = f"node_id, device, bucket_at, readings, {', '.join(parts)}, coalesce(energy_mj, -1)"
    return sorted(database.rows(f"select {columns} from devices"))


def _folded(log: list[RawMessage], coarse_until: datetime = NEVER) -> list[tuple[Any, ...]]:
    fold = Fold(coarse_until)
    for each in log:
        fold.apply(each)
    return fold.rows()


@SLOW
@given(st.data())
def test_any_beginning_of_a_log_in_any_batches_makes_the_rows_of_the_fold(data: st.DataObject) -> None:
    log = data.draw(logs())
    with fresh_database() as database:
        for batch in data.draw(cut(log)):
            write(database, "WORKERS", batch)
        assert _told(database) == _folded(log)


@SLOW
@given(st.data())
def test_pruning_between_or_after_makes_the_same_coarser_rows(data: st.DataObject) -> None:
    log = data.draw(logs())
    now = START + timedelta(days=data.draw(st.integers(1, 5)), minutes=data.draw(st.integers(0, 900)))
    with fresh_database() as database:
        write(database, "WORKERS", log)
        prune(database, now)
        late = _devices(database)
        until = now.replace(tzinfo=None) - timedelta(days=1)
        assert _told(database) == _folded(log, until - timedelta(minutes=until.minute % 10))
    with fresh_database() as database:
        for batch in data.draw(cut(log)):
            write(database, "WORKERS", batch)
            prune(database, now)
        assert _devices(database) == late


def _devices(database: Database) -> dict[str, Any]:
    return {name: rows for name, rows in dump(database).items() if name.startswith("device")}
