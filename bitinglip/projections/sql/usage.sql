-- Grain: one row per API key, model, kind and hour in which a task or an attempt ended.
-- Units: hours are those of the events' own `time`, UTC; `_us` are microseconds, `_ms` milliseconds, `_mj` millijoules:
-- whole numbers, whose sums do not depend on their order.
--
-- part of: attempts

-- name: table
create table self.usage (
    hour_at timestamp not null,
    key_id varchar,
    model varchar not null,
    kind varchar not null,
    succeeded bigint not null,
    failed bigint not null,
    cancelled bigint not null,
    expired bigint not null,
    dead_lettered bigint not null,
    attempts bigint not null,
    run_us bigint not null,
    input_tokens bigint not null,
    output_tokens bigint not null,
    images bigint not null,
    audio_in_ms bigint not null,
    audio_out_ms bigint not null,
    energy_mj bigint
);

comment on table self.usage is 'What was used; one row per API key, model, kind and hour.';
comment on column self.usage.hour_at is 'When the hour begins in which it ended (UTC).';
comment on column self.usage.key_id is 'API key that asked for the tasks; null without keys.';
comment on column self.usage.model is 'Reference of the model, as the callers gave it.';
comment on column self.usage.kind is 'What was asked, as text-generation.';
comment on column self.usage.succeeded is 'Tasks that succeeded.';
comment on column self.usage.failed is 'Tasks that ended with a failure that is not tried again.';
comment on column self.usage.cancelled is 'Tasks that were cancelled.';
comment on column self.usage.expired is 'Tasks that were not started in time.';
comment on column self.usage.dead_lettered is 'Tasks whose last allowed attempt failed.';
comment on column self.usage.attempts is 'Attempts that ended, however.';
comment on column self.usage.run_us is 'Time of all attempts on their devices, those that failed included, in microseconds.';
comment on column self.usage.input_tokens is 'Tokens that went in, of tasks that succeeded; so for all that follow.';
comment on column self.usage.output_tokens is 'Tokens that came out.';
comment on column self.usage.images is 'Images that came out.';
comment on column self.usage.audio_in_ms is 'Milliseconds of sound that went in.';
comment on column self.usage.audio_out_ms is 'Milliseconds of sound that came out.';
comment on column self.usage.energy_mj is 'What cards drew for them, in millijoules; null if no card told.';

-- name: usage
-- when: task.succeeded task.failed task.cancelled task.expired task.dead_lettered
merge into self.usage as old
using (
    select
        hour_at,
        key_id,
        model,
        kind,
        count(*) filter (ends = 'succeeded') as succeeded,
        count(*) filter (ends = 'failed') as failed,
        count(*) filter (ends = 'cancelled') as cancelled,
        count(*) filter (ends = 'expired') as expired,
        count(*) filter (ends = 'dead_lettered') as dead_lettered,
        count(*) filter (ends is null) as attempts,
        coalesce(sum(round(run_ms * 1e3)::bigint), 0)::bigint as run_us,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(images), 0)::bigint as images,
        coalesce(sum(audio_in_ms), 0)::bigint as audio_in_ms,
        coalesce(sum(audio_out_ms), 0)::bigint as audio_out_ms,
        sum(round(energy_j * 1e3)::bigint)::bigint as energy_mj
    from (
        select date_trunc('hour', time) as hour_at, key_id, model, kind, step as ends
        from attempt_steps
        where ends_task
        union all by name
        select
            date_trunc('hour', ended_at) as hour_at, key_id, model, kind, run_ms, input_tokens, output_tokens, images,
            audio_in_ms, audio_out_ms, energy_j
        from attempt_rows
        where ended_at is not null
    )
    group by all
) as new
on old.hour_at = new.hour_at
    and old.model = new.model
    and old.kind = new.kind
    and old.key_id is not distinct from new.key_id
when matched then update set
    succeeded = old.succeeded + new.succeeded,
    failed = old.failed + new.failed,
    cancelled = old.cancelled + new.cancelled,
    expired = old.expired + new.expired,
    dead_lettered = old.dead_lettered + new.dead_lettered,
    attempts = old.attempts + new.attempts,
    run_us = old.run_us + new.run_us,
    input_tokens = old.input_tokens + new.input_tokens,
    output_tokens = old.output_tokens + new.output_tokens,
    images = old.images + new.images,
    audio_in_ms = old.audio_in_ms + new.audio_in_ms,
    audio_out_ms = old.audio_out_ms + new.audio_out_ms,
    energy_mj = coalesce(old.energy_mj + new.energy_mj, old.energy_mj, new.energy_mj)
when not matched then insert by name;
