-- Grain: one row per attempt that failed and that another one follows, or was to follow.
-- Units: times are the events' own `time`, UTC.
--
-- A task's row tells of its latest attempt alone. What it forgets with the next one is kept here, so that nobody has to
-- read the events again, and their `data`, to know how a task came to where it is.
-- `queued_at` is what the row said when the attempt failed: it is that of an attempt before if this one did not wait.
--
-- The block is appended to the one of the same name in `tasks.sql`: it is run before the rows are changed.
--
-- part of: tasks

-- name: table
create table self.setbacks (
    task_id varchar not null,
    attempt integer not null,
    queued_at timestamp,
    started_at timestamp,
    failed_at timestamp not null
);

comment on table self.setbacks is 'Attempts that failed, after which their task was to be tried again; one row per attempt.';
comment on column self.setbacks.task_id is 'The task.';
comment on column self.setbacks.attempt is 'Number of the attempt, from 1.';
comment on column self.setbacks.queued_at is 'When the task was last ready to run before it failed (UTC); as before if the attempt followed another one at once.';
comment on column self.setbacks.started_at is 'When it was assigned (UTC).';
comment on column self.setbacks.failed_at is 'When it failed (UTC).';

-- name: setbacks
insert into self.setbacks
select
    about,
    state_key // 4,
    coalesce(last_value(if(makes_ready and state_key > greatest(known_key, earlier_key), time, null) ignore nulls) over before, queued_at),
    coalesce(last_value(if(type = 'task.assigned', time, null) ignore nulls) over before, started_at),
    time
from (
    select
        batch.about,
        batch.sequence,
        batch.type,
        batch.time,
        batch.makes_ready,
        batch.state_key,
        known_tasks.queued_at,
        known_tasks.started_at,
        coalesce(known_tasks.state_key, 0) as known_key,
        coalesce(max(batch.state_key) over earlier, 0) as earlier_key,
        known_tasks.task_id is not null as known
    from batch left join known_tasks on known_tasks.task_id = batch.about
    where batch.state_key is not null and batch.about in (select about from batch where type = 'task.failed')
    window earlier as (
        partition by batch.about order by batch.sequence rows between unbounded preceding and 1 preceding
    )
)
window before as (partition by about order by sequence rows between unbounded preceding and current row)
qualify type = 'task.failed' and state_key < 2147483647 and (known or count_if(type = 'task.submitted') over before > 0);
