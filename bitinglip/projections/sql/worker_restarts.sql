-- Grain: one row per node and reason for which its agent started a worker again.
-- Units: counts are since the log began; only a rebuild from a log that lost its beginning makes them smaller.
--
-- The reasons are few: how the process ended (`signal_9`, `status_4`), or that somebody asked for it (`command`, `rolling`).
--
-- streams: WORKERS

-- name: table
create table self.worker_restarts (
    node_id varchar,
    reason varchar,
    restarts bigint not null,
    primary key (node_id, reason)
);

comment on table self.worker_restarts is 'How often workers were started again; one row per node and reason.';
comment on column self.worker_restarts.node_id is 'Machine that they run on.';
comment on column self.worker_restarts.reason is 'signal_N or status_N: it ended by itself, so; command or rolling: it was asked for.';
comment on column self.worker_restarts.restarts is 'Times since the log began.';

-- name: apply
-- when: node.worker_exited node.worker_commanded node.restarting_workers
insert into self.worker_restarts
select node_id, reason, sum(workers) as restarts
from (
    select
        about as node_id,
        case
            when type = 'node.restarting_workers' then 'rolling'
            when type = 'node.worker_commanded' and said.command = 'restart' then 'command'
            when type = 'node.worker_exited' and said.restart_in_s is not null
                then if(said.status < 0, 'signal_' || -said.status, 'status_' || said.status)
        end as reason,
        if(type = 'node.restarting_workers', len(said.workers), 1) as workers
    from (
        select
            about,
            type,
            json_transform(data, '{
                "status": "BIGINT", "restart_in_s": "DOUBLE", "command": "VARCHAR", "workers": ["VARCHAR"]
            }') as said
        from batch
        where type in ('node.restarting_workers', 'node.worker_commanded', 'node.worker_exited')
    )
)
where reason is not null and workers > 0
group by all
on conflict do update set restarts = restarts + excluded.restarts;
