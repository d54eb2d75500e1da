-- Grain: one row per node (machine with an agent) that ever said something.
-- Units: times are the events' own `time`, UTC; counts are since the agent's last start.
--
-- A start begins the row anew: what a former agent of this node said is gone. Of each field the last value counts that
-- any event of the node told.
--
-- streams: WORKERS

-- name: table
create table self.nodes (
    node_id varchar primary key,
    state varchar,
    pid bigint,
    release varchar,
    system varchar,
    labels json,
    draining boolean,
    cpus bigint,
    cpu_percent double,
    memory_total_bytes bigint,
    memory_used_bytes bigint,
    disk_total_bytes bigint,
    disk_free_bytes bigint,
    rss_bytes bigint,
    devices json,
    workers json,
    worker_exits bigint,
    worker_exit_reason varchar,
    started_at timestamp,
    seen_at timestamp,
    stopped_at timestamp,
    last_sequence ubigint
);

comment on table self.nodes is 'Nodes (one machine with its agent each); one row per node.';
comment on column self.nodes.node_id is 'Stable name of the machine.';
comment on column self.nodes.state is 'online, draining or offline, as its agent last said; one that crashed says nothing: look at seen_at.';
comment on column self.nodes.pid is 'Process id of its agent.';
comment on column self.nodes.release is 'Version of BitingLip.';
comment on column self.nodes.system is 'Operating system.';
comment on column self.nodes.labels is 'Labels by name.';
comment on column self.nodes.draining is 'Whether its workers are to take nothing new.';
comment on column self.nodes.cpus is 'Cores.';
comment on column self.nodes.cpu_percent is 'How busy all cores together were before the last heartbeat, in percent.';
comment on column self.nodes.memory_total_bytes is 'Main memory in bytes.';
comment on column self.nodes.memory_used_bytes is 'Main memory in use at the last heartbeat, in bytes.';
comment on column self.nodes.disk_total_bytes is 'Size of the disk of the data directory in bytes.';
comment on column self.nodes.disk_free_bytes is 'What is free of it, in bytes.';
comment on column self.nodes.rss_bytes is 'Resident memory of the agent itself in bytes.';
comment on column self.nodes.devices is 'Its devices with their last readings; lost says why there are none.';
comment on column self.nodes.workers is 'Its worker processes with their states at the last heartbeat.';
comment on column self.nodes.worker_exits is 'Times that a worker process ended by itself since the agent''s start.';
comment on column self.nodes.worker_exit_reason is 'How one ended, the last time.';
comment on column self.nodes.started_at is 'When its agent last started (UTC).';
comment on column self.nodes.seen_at is 'Its last sign of life (UTC).';
comment on column self.nodes.stopped_at is 'When its agent stopped (UTC); null while it has not.';
comment on column self.nodes.last_sequence is 'Sequence of its last event in WORKERS.';

-- name: apply
-- when: node.*
create or replace temp table node_changes as
with said as (
    select
        about as node_id,
        type,
        time,
        sequence,
        case type when 'node.drained' then true when 'node.undrained' then false else said.draining end as draining,
        said,
        max(if(type = 'node.started', sequence, null)) over (partition by about) as started_sequence
    from (
        select
            *,
            json_transform(data, '{
                "pid": "BIGINT", "release": "VARCHAR", "system": "VARCHAR", "labels": "JSON", "draining": "BOOLEAN",
                "cpus": "BIGINT", "cpu_percent": "DOUBLE", "memory_total_bytes": "BIGINT",
                "memory_used_bytes": "BIGINT", "disk_total_bytes": "BIGINT", "disk_free_bytes": "BIGINT",
                "rss_bytes": "BIGINT", "devices": "JSON", "workers": "JSON", "reason": "VARCHAR"
            }') as said
        from batch
        where starts_with(type, 'node.')
    )
)
select
    node_id,
    bool_or(type = 'node.started') as begins,
    max_by(said.pid, sequence) as pid,
    max_by(said.release, sequence) as release,
    max_by(said.system, sequence) as system,
    max_by(said.labels, sequence) as labels,
    max_by(said.cpus, sequence) as cpus,
    max_by(said.cpu_percent, sequence) as cpu_percent,
    max_by(said.memory_total_bytes, sequence) as memory_total_bytes,
    max_by(said.memory_used_bytes, sequence) as memory_used_bytes,
    max_by(said.disk_total_bytes, sequence) as disk_total_bytes,
    max_by(said.disk_free_bytes, sequence) as disk_free_bytes,
    max_by(said.rss_bytes, sequence) as rss_bytes,
    max_by(said.devices, sequence) as devices,
    max_by(draining, sequence) as draining,
    max_by(said.workers, if(type = 'node.heartbeat', sequence, null)) as workers,
    count_if(type = 'node.worker_exited') as worker_exits,
    max_by(said.reason, if(type = 'node.worker_exited', sequence, null)) as worker_exit_reason,
    max(if(type = 'node.started', time, null)) as started_at,
    max(time) as seen_at,
    max(if(type = 'node.stopped', time, null)) as stopped_at,
    max(sequence) as last_sequence
from said
where sequence >= coalesce(started_sequence, 0)
group by node_id;

create or replace temp table node_rows as
select
    new.node_id,
    coalesce(new.draining, old.draining, false) as draining,
    coalesce(new.stopped_at, old.stopped_at) as stopped_at,
    new.worker_exits + coalesce(old.worker_exits, 0) as worker_exits,
    coalesce(new.pid, old.pid) as pid,
    coalesce(new.release, old.release) as release,
    coalesce(new.system, old.system) as system,
    coalesce(new.cpus, old.cpus) as cpus,
    coalesce(new.cpu_percent, old.cpu_percent) as cpu_percent,
    coalesce(new.memory_total_bytes, old.memory_total_bytes) as memory_total_bytes,
    coalesce(new.memory_used_bytes, old.memory_used_bytes) as memory_used_bytes,
    coalesce(new.disk_total_bytes, old.disk_total_bytes) as disk_total_bytes,
    coalesce(new.disk_free_bytes, old.disk_free_bytes) as disk_free_bytes,
    coalesce(new.rss_bytes, old.rss_bytes) as rss_bytes,
    coalesce(new.worker_exit_reason, old.worker_exit_reason) as worker_exit_reason,
    coalesce(new.started_at, old.started_at) as started_at,
    coalesce(new.labels, old.labels, '{}') as labels,
    coalesce(new.devices, old.devices, '[]') as devices,
    coalesce(new.workers, old.workers, '[]') as workers,
    new.seen_at,
    new.last_sequence
from node_changes as new
left join self.nodes as old on old.node_id = new.node_id and not new.begins;

insert or replace into self.nodes by name
select
    *,
    case when stopped_at is not null then 'offline' when draining then 'draining' else 'online' end as state
from node_rows;
