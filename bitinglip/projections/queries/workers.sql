-- All workers that ever said something, by name.

select
    worker_id, node_id, state, pid, device, release, models, running, done, failed, loaded, rss_bytes,
    engine_exits, engine_exit_reason, stop_reason, started_at, seen_at, stopped_at, last_sequence
from workers
order by worker_id;
