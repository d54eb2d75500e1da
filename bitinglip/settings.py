"""Every setting, with its default and its meaning; nothing else reads the environment.

Precedence: command line flag, then environment (`BITINGLIP_<SECTION>_<NAME>`, as in `BITINGLIP_NATS_URL`; two
underscores between section and name do as well), then the TOML file, then the default.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from bitinglip.errors import InvalidConfig

PREFIX = "BITINGLIP_"
CONFIG_FILE_VARIABLE = "BITINGLIP_CONFIG"

Origin = Literal["flag", "environment", "file", "default"]
Port = Annotated[int, Field(ge=0, le=65535)]
Network = IPv4Network | IPv6Network


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Nats(_Section):
    """The event log's server."""

    url: str | None = Field(
        default=None,
        description="Server to use, or several of one cluster with commas between; none: `bitinglip up` starts a "
        "private one.",
    )
    server: Path | None = Field(default=None, description="Path of the nats-server binary; none: PATH, then the cache.")
    port: Port = Field(default=0, description="Port of the private server on loopback; 0: a free one.")
    replicas: int = Field(
        default=1,
        ge=1,
        le=5,
        description="Copies of each stream (3 on a three-node cluster). Streams that have more keep them.",
    )
    sync_always: bool = Field(
        default=False, description="The private server syncs each write to disk before its ack (about 40 times slower)."
    )
    max_store_bytes: int = Field(
        default=20 * 2**30,
        ge=2**20,
        description="Most bytes that the private server keeps on disk, all streams together.",
    )
    artifact_lifetime_days: float = Field(
        default=30.0, ge=0, description="Days that inputs and results outside of events are kept; 0: for ever."
    )
    connect_timeout_s: float = Field(default=5.0, gt=0, description="Seconds to wait for the first connection.")
    ping_s: float = Field(
        default=5.0,
        gt=0,
        description="Seconds between pings; a connection counts as dead at the third one without an answer.",
    )
    append_timeout_s: float = Field(
        default=5.0, gt=0, description="Seconds to wait for an append's ack before it is retried."
    )
    in_flight: int = Field(
        default=4096, ge=1, description="Most appends that one process has unacknowledged at a time."
    )


class Log(_Section):
    """What the log keeps, and what a process prints."""

    tick_ttl_s: int = Field(default=86_400, ge=1, description="Seconds that progress events stay in the log.")
    heartbeat_ttl_s: int = Field(default=3_600, ge=1, description="Seconds that worker heartbeats stay in the log.")
    inline_max_bytes: int = Field(
        default=65_536, ge=1024, le=512 * 1024, description="Inputs and results over this many bytes become artifacts."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is printed."
    )
    format: Literal["text", "json"] = Field(default="text", description="Log lines as text or as JSON.")


class Tasks(_Section):
    """What holds for tasks that say nothing else."""

    retry: tuple[Annotated[str, Field(pattern=r"^[a-z-]+=([1-9]\d?|100)/\d{1,7}/\d{1,8}$")], ...] = Field(
        default=(),
        description="Retry policies of kinds, `KIND=ATTEMPTS/BASE_MS/MAX_MS` each, for tasks that bring none.",
    )
    private: bool = Field(
        default=False,
        description="Keep parameters and results of tasks that do not say `private` themselves out of the log: "
        "encrypted, each task with a key of its own (docs/privacy.md).",
    )
    followed_most: int = Field(
        default=10_000,
        ge=0,
        description="Tasks waiting for others that a gateway releases at once; it looks at more of them now and then.",
    )


class Gateway(_Section):
    """The HTTP door."""

    host: str = Field(default="127.0.0.1", description="Address to bind; any but loopback needs an API key.")
    port: Port = Field(default=8420, description="Port to bind; 0: a free one.")
    url: str = Field(default="http://127.0.0.1:8420", description="Gateway that the command line speaks to.")
    api_key: SecretStr | None = Field(
        default=None, min_length=16, description="Key that callers send as a bearer token."
    )
    record_address: Literal["off", "prefix", "full"] = Field(
        default="prefix",
        description="What events say of the address that asked for them: nothing; its network (/24, or /48 of IPv6), "
        "which names no person; or all of it. The log keeps it for good.",
    )
    trusted_proxies: tuple[Network, ...] = Field(
        default=(),
        description="Proxies in front of the gateway, as addresses or networks (`10.0.0.0/8`): who asks through one of "
        "them is known by `X-Forwarded-For`, which is not looked at otherwise.",
    )
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, description="Largest request body that is JSON.")
    max_upload_bytes: int = Field(default=256 * 2**20, ge=1024, description="Largest artifact that can be uploaded.")
    max_model_gb: float = Field(
        default=200.0, gt=0, description="Largest model that can be uploaded, all of its files together, in GiB."
    )
    share_port: Port = Field(
        default=0,
        description="Port at which nodes get what was uploaded, at `models.share_host`; 0: a free one.",
    )
    queues_most: int = Field(
        default=2000, ge=1, description="Most queues: one for each lane, model, API key and set of what tasks require."
    )
    queue_most: int = Field(
        default=100_000,
        ge=0,
        description="Most tasks that wait in one queue; what is over it is answered 429. 0: no bound.",
    )
    key_most: int = Field(
        default=200_000,
        ge=0,
        description="Most tasks of one API key that wait, in all queues together; what is over it is answered 429. "
        "Callers without a key count as one. 0: no bound.",
    )
    store_warn_ratio: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Part of the log's room (`nats.max_store_bytes`, or the account's limit) at which `/readyz` warns.",
    )
    wait_max_s: float = Field(
        default=60.0, ge=0, description="Longest wait that `Prefer: wait` is granted, in seconds."
    )
    sse_heartbeat_s: float = Field(default=15.0, gt=0, description="Seconds between comments on a quiet event stream.")
    drain_s: float = Field(default=5.0, ge=0, description="Seconds that open requests get to end on shutdown.")


class Worker(_Section):
    """One card's process."""

    id: str | None = Field(
        default=None, description="Stable name of the worker; none: made from the node and the process."
    )
    node: str | None = Field(default=None, description="Name of this machine; none: its host name.")
    models: tuple[str, ...] = Field(
        default=(),
        description="Models to serve (`REFERENCE` or `REFERENCE=PATH`); none: `echo`, all in `models.dir`, and all "
        "that the node has fetched.",
    )
    device: str = Field(
        default="auto",
        description="Device to run on: auto, cpu, cuda:0, xpu:0, mps; or several, as `cuda:0,cuda:1`, over "
        "which models are spread that are too big for the first one.",
    )
    labels: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=(), max_length=64, description="Words that tasks may require of a worker, as `eu` or `fast`."
    )
    lease_s: float = Field(
        default=10.0, ge=0.5, description="Seconds without a sign of life after which an attempt is lost."
    )
    heartbeat_s: float = Field(default=10.0, gt=0, description="Seconds between a worker's heartbeat events.")
    max_batch: int = Field(default=64, ge=1, le=4096, description="Most tasks that are pulled and run together.")
    gather_ms: float = Field(
        default=5.0,
        ge=0,
        le=1000,
        description="Milliseconds that a busy worker waits for more tasks before it runs a batch; an idle one: none.",
    )
    grace_s: float = Field(
        default=20.0, ge=0, description="Seconds that running tasks get to end when a worker is stopped."
    )
    load_timeout_s: float = Field(default=1800.0, gt=0, description="Seconds that a model may take to load.")
    join_s: float = Field(
        default=5.0,
        ge=0,
        description="Seconds for which new tasks join a running batch of text generation, on a worker that serves "
        "other models as well: then it is the others' turn.",
    )
    pinned: tuple[str, ...] = Field(
        default=(),
        description="Models that an idle worker loads before anybody asks for them, and keeps in memory; by reference. "
        "For a worker that serves several.",
    )
    max_loaded: int = Field(default=2, ge=1, description="Most models that an engine process keeps loaded.")
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="GiB of the device that models may take; none: nine tenths of what it has. The least recently used "
        "ones make room for others.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Precision of the weights; auto: the checkpoint's own, and float32 on a CPU."
    )
    step_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds without a step after which a running engine counts as hung, and is replaced.",
    )
    quantize: tuple[Annotated[str, Field(pattern=r"^.+=(int8|int4)$")], ...] = Field(
        default=(),
        description="Models whose linear layers are brought to a smaller precision when they are loaded, as "
        "`REFERENCE=int8` or `REFERENCE=int4`; needs torchao.",
    )
    offload: Literal["none", "memory", "disk"] = Field(
        default="none",
        description="Where the layers of a model go that find no room on the device, which is slow: main memory, or "
        "then the disk as well; none: it is refused.",
    )
    vllm: tuple[Annotated[str, Field(pattern=r"^[^=]+(=https?://.+)?$")], ...] = Field(
        default=(),
        description="Models that vLLM runs: `REFERENCE` has a server started for it, `REFERENCE=http://HOST:PORT` uses "
        "one that runs.",
    )
    vllm_command: str = Field(
        default="vllm serve",
        description="How a vLLM server is started, in an environment of its own; the model's folder and the port "
        "follow.",
    )
    trust_pickles: tuple[str, ...] = Field(
        default=(),
        description="Models whose weights may be loaded from pickles (.bin), which can run code; by reference.",
    )
    trust_code: tuple[str, ...] = Field(
        default=(), description="Models that may run Python code of their own when they are loaded; by reference."
    )
    ticks_per_s: float = Field(default=20.0, gt=0, le=100, description="Most progress events a second for one task.")
    ticks_total_per_s: float = Field(
        default=320.0,
        gt=0,
        description="Most progress events a second for all tasks of a worker: the more run, the larger are the pieces.",
    )
    threads: int = Field(default=0, ge=0, description="Threads of the engine on a CPU; 0: torch's own choice.")
    linear: Literal["auto", "onednn", "torch"] = Field(
        default="auto",
        description="What computes float32 linear layers on a CPU: oneDNN, or torch's own choice; auto: oneDNN on "
        "x86 CPUs that are not Intel's.",
    )


class Node(_Section):
    """One machine's agent, which runs a worker for each of its devices."""

    workers: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="Worker processes in all, shared out over the devices; none: see the next.",
    )
    workers_per_device: int = Field(default=1, ge=1, le=64, description="Worker processes for each device.")
    devices: tuple[str, ...] = Field(
        default=(),
        description="Devices that get workers, as `cuda:0`; none: `worker.device`, and if that is `auto`, each card "
        "that is found, or one worker on the CPU.",
    )
    labels: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(=[^=,\s]{0,63})?$")], ...] = Field(
        default=(), description="Labels of this machine, as `NAME=VALUE` or `NAME`; `node label` changes them."
    )
    heartbeat_s: float = Field(default=10.0, gt=0, description="Seconds between a node's heartbeat events.")
    log_max_bytes: int = Field(
        default=16 * 2**20, ge=65_536, description="Most bytes of one worker's log file; the file before is kept."
    )


class Models(_Section):
    """The weights on this machine."""

    dir: Path | None = Field(
        default=None, description="Folder of local models, `<org>/<name>`; none: `<data_dir>/models`."
    )
    hub_cache: Path | None = Field(default=None, description="The hub's cache; none: huggingface_hub's own place.")
    parallel: int = Field(default=2, ge=1, le=64, description="Models that a node fetches at a time.")
    disk_gb: float | None = Field(
        default=None,
        gt=0,
        description="GiB that the models of a node may take; those that were not used for the longest make room for "
        "others, but for pinned ones. None: all of the disk but the next.",
    )
    min_free_gb: float = Field(default=5.0, ge=0, description="GiB of a node's disk that models leave free.")
    share: bool = Field(default=True, description="Whether a node hands out the models that it has to other nodes.")
    share_host: str | None = Field(
        default=None,
        description="Address at which other nodes reach this one for that; none: the one that it has towards the NATS "
        "server.",
    )
    share_port: Port = Field(default=0, description="Port for that; 0: a free one.")
    endpoint: Annotated[str, Field(pattern=r"^https?://[^/]")] | None = Field(
        default=None,
        description="Address of the hub of models, if it is a mirror; none: what `HF_ENDPOINT` says, or the hub's own. "
        "A token for it is taken from `HF_TOKEN` alone.",
    )
    offline: bool = Field(
        default=False,
        description="Never ask the hub, as `HF_HUB_OFFLINE` has it: what is on the nodes works, and folders can be "
        "imported.",
    )
    hub_wait_s: float = Field(
        default=30.0, gt=0, description="Seconds that a gateway waits for the hub to tell what a model is."
    )
    auto_download: bool | None = Field(
        default=None,
        description="Whether a task for a model that no node has makes one fetch it; none: if `gateway.host` is "
        "loopback.",
    )


class Projections(_Section):
    """The DuckDB read models of a gateway."""

    path: Path | None = Field(default=None, description="The DuckDB file; none: `<data_dir>/projections.duckdb`.")
    archive_path: Path | None = Field(
        default=None, description="Folder of the gateway's copies of the archive; none: `<data_dir>/archive`."
    )
    flush_ms: float = Field(
        default=25.0,
        ge=0,
        description="Milliseconds that a projector gathers a batch after a quiet time, else until it is worth a "
        "transaction, for at most 250; one that a reader waits for is written at once.",
    )
    batch_max: int = Field(default=20_000, ge=1, description="Most events in one transaction.")
    memory_limit: str = Field(default="512MB", description="DuckDB's memory limit.")
    threads: int = Field(
        default=1,
        ge=1,
        description="DuckDB's threads for one statement; more of them shorten large analyses, and lengthen each "
        "transaction of the projector.",
    )
    keep_ticks_s: float = Field(
        default=172_800.0,
        gt=0,
        description="Seconds that progress, heartbeats and other ticks stay among the read model's events; they leave "
        "the log after `log.tick_ttl_s`.",
    )
    snapshot_events: int = Field(
        default=1_000_000,
        ge=0,
        description="Events after which a gateway stores a copy of its read model for those that start; 0: never.",
    )
    read_wait_s: float = Field(default=5.0, ge=0, description="Longest wait of a read for its own writes, in seconds.")
    query_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest run of a query that a caller sends, in seconds."
    )
    query_max_rows: int = Field(
        default=10_000, ge=1, description="Most rows in the answer to a query that a caller sends."
    )
    query_export_max_rows: int = Field(
        default=1_000_000, ge=1, description="Most rows in such an answer as Arrow or CSV, which are sent as they come."
    )
    query_export_max_bytes: int = Field(
        default=2**30, ge=2**20, description="Most bytes of such an answer, as DuckDB holds them."
    )


class Audit(_Section):
    """Signed heads of the log."""

    enabled: bool = Field(default=True, description="Whether a gateway signs the log (docs/audit.md).")
    every_events: int = Field(
        default=800, ge=1, le=800, description="Events of a stream after which its head is signed, within 10 s."
    )
    every_s: float = Field(
        default=300.0, gt=0, description="Seconds after which a stream's head is signed, if there is anything new."
    )
    key_file: Path | None = Field(
        default=None,
        description="File of the Ed25519 key that signs, made if it is not there; none: `<data_dir>/audit.key`.",
    )


class Archive(_Section):
    """Old events: when they go into the archive, and when what is archived leaves the server."""

    every_s: float = Field(
        default=60.0, ge=0, description="Seconds between two looks of a gateway for what is to be archived; 0: none."
    )
    settled_s: float = Field(default=10.0, ge=0, description="Age in seconds from which an event is archived.")
    part_events: int = Field(
        default=100_000,
        ge=1,
        description="Most events in a file of the archive; a file ends with its day (UTC) as well.",
    )
    hot_age_s: float = Field(
        default=7 * 86_400.0,
        ge=0,
        description="Seconds after which tasks that are over leave the server, once archived.",
    )
    hot_tasks: int = Field(
        default=100_000,
        ge=0,
        description="Tasks that are over and stay on the server; each takes it about 3 KB of memory.",
    )


class Settings(_Section):
    """The whole configuration, built once in a `main` and handed down by section."""

    data_dir: Path = Field(
        default_factory=lambda: _default_data_dir(), description="Where BitingLip keeps what must survive a restart."
    )
    nats: Nats = Nats.model_construct()
    log: Log = Log.model_construct()
    tasks: Tasks = Tasks.model_construct()
    gateway: Gateway = Gateway.model_construct()
    worker: Worker = Worker.model_construct()
    node: Node = Node.model_construct()
    models: Models = Models.model_construct()
    projections: Projections = Projections.model_construct()
    audit: Audit = Audit.model_construct()
    archive: Archive = Archive.model_construct()

    @property
    def models_dir(self) -> Path:
        """The folder of local models."""
        return self.models.dir or self.data_dir / "models"

    @property
    def uploads_dir(self) -> Path:
        """Where a gateway has the models that are uploaded to it, until nodes have them."""
        return self.data_dir / "uploads"

    @property
    def audit_key_path(self) -> Path:
        """The key that a gateway on this machine signs the log with."""
        return self.audit.key_file or self.data_dir / "audit.key"

    @property
    def archive_path(self) -> Path:
        """Where a gateway keeps its copies of the archive."""
        return self.projections.archive_path or self.data_dir / "archive"

    @property
    def projections_path(self) -> Path:
        """The gateway's DuckDB file."""
        return self.projections.path or self.data_dir / "projections.duckdb"


def load(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Settings, dict[str, Origin]]:
    """Build the settings from flags (dotted names, None = not given), environment, file and defaults.

    Returns the settings and, for each dotted name, where its value came from.

    Raises:
        InvalidConfig: a value, a name or the file itself is refused.
    """
    layers: list[tuple[Origin, dict[str, Any]]] = [
        ("file", _read_file(environ)),
        ("environment", _read_environment(environ)),
        ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = dict.fromkeys(setting_names(), "default")
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    return _validate(values), origins


def setting_names() -> list[str]:
    """Return every setting's dotted name, in the order of declaration."""
    return [name for name, _ in iter_fields()]


def iter_fields() -> list[tuple[str, Any]]:
    """Return every setting's dotted name with its pydantic field, in the order of declaration."""
    found: list[tuple[str, Any]] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            found += [(f"{name}.{inner}", inner_field) for inner, inner_field in section.model_fields.items()]
        else:
            found.append((name, field))
    return found


def value_of(settings: Settings, name: str) -> Any:
    """Return the value of a setting by its dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def environment_name(name: str) -> str:
    """Return the environment variable that sets this dotted name."""
    return PREFIX + name.replace(".", "_").upper()


def _validate(values: Mapping[str, Any]) -> Settings:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[inner] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidConfig(problem=f"{where}: {first['msg']}") from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {environment_name(name): name for name in setting_names()}
    several = {name for name, field in iter_fields() if isinstance(field.default, tuple)}
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_FILE_VARIABLE:
            continue
        name = names.get(variable.replace("__", "_"))
        if name is None:
            raise InvalidConfig(problem=f"the environment variable {variable} names no setting")
        found[name] = tuple(filter(None, text.split(","))) if name in several else text
    return found


def _read_file(environ: Mapping[str, str]) -> dict[str, Any]:
    path = environ.get(CONFIG_FILE_VARIABLE)
    if path is None:
        return {}
    try:
        document = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidConfig(problem=f"cannot read the file {path}: {error}") from error
    return _flatten(document, path)


def _flatten(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in document.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{key}": item for key, item in inner.items()}
    if unknown := found.keys() - set(setting_names()):
        raise InvalidConfig(problem=f"{path}: unknown setting {min(unknown)}")
    return found


def _default_data_dir() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "bitinglip"
