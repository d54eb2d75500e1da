-- Grain: one row per model, kind, lane, hour, phase and bucket of a histogram, of the attempts that succeeded.
-- Units: hours are those in which the attempts ended, by the events' own `time`, UTC; `_us` are microseconds.
--
-- Rows of any hours, lanes and models are merged by adding: that is what a histogram is for. A bucket is four to a
-- doubling: bucket b holds the times above 2^((b - 1) / 4) and up to 2^(b / 4) microseconds, bucket 0 those up to one. A
-- quantile is told as the middle of its bucket (2^((b - 0.5) / 4)), so it is off by 9.1 % at most; the means are exact.
--
-- part of: attempts

-- name: table
create table self.latency (
    hour_at timestamp not null,
    model varchar not null,
    kind varchar not null,
    lane varchar not null,
    phase varchar not null,
    bucket integer not null,
    attempts bigint not null,
    total_us bigint not null,
    middle_ms double not null
);

comment on table self.latency is 'How long attempts that succeeded waited, loaded and ran: histograms; one row per model, kind, lane, hour, phase and bucket.';
comment on column self.latency.hour_at is 'When the hour begins in which they ended (UTC).';
comment on column self.latency.model is 'Reference of the model, as the callers gave it.';
comment on column self.latency.kind is 'What was asked, as text-generation.';
comment on column self.latency.lane is 'interactive, normal or batch.';
comment on column self.latency.phase is 'wait: from ready to assigned; load: until the model was in memory, 0 if it was; run: on the device.';
comment on column self.latency.bucket is 'Bucket b: above 2^((b-1)/4) and up to 2^(b/4) microseconds; 0: up to one.';
comment on column self.latency.attempts is 'Attempts in the bucket.';
comment on column self.latency.total_us is 'Their times together, in microseconds.';
comment on column self.latency.middle_ms is 'Middle of the bucket, in milliseconds: off by 9.1 % at most.';

create view self.latency_quantiles as
with counted as (
    select
        *,
        sum(attempts) over (partition by hour_at, model, kind, lane, phase order by bucket) as up_to,
        sum(attempts) over (partition by hour_at, model, kind, lane, phase) as whole
    from self.latency
)
select
    hour_at,
    model,
    kind,
    lane,
    phase,
    max(whole)::bigint as attempts,
    sum(total_us) / max(whole) / 1e3 as mean_ms,
    min(middle_ms) filter (up_to >= 0.5 * whole) as p50_ms,
    min(middle_ms) filter (up_to >= 0.9 * whole) as p90_ms,
    min(middle_ms) filter (up_to >= 0.99 * whole) as p99_ms
from counted
group by hour_at, model, kind, lane, phase;

comment on view self.latency_quantiles is 'Quantiles of how long attempts that succeeded waited, loaded and ran; one row per model, kind, lane, hour and phase.';
comment on column self.latency_quantiles.hour_at is 'When the hour begins in which they ended (UTC).';
comment on column self.latency_quantiles.model is 'Reference of the model, as the callers gave it.';
comment on column self.latency_quantiles.kind is 'What was asked, as text-generation.';
comment on column self.latency_quantiles.lane is 'interactive, normal or batch.';
comment on column self.latency_quantiles.phase is 'wait: from ready to assigned; load: until the model was in memory, 0 if it was; run: on the device.';
comment on column self.latency_quantiles.attempts is 'Attempts that succeeded.';
comment on column self.latency_quantiles.mean_ms is 'Their mean, in milliseconds.';
comment on column self.latency_quantiles.p50_ms is 'Half of them took no longer, in milliseconds; off by 9.1 % at most.';
comment on column self.latency_quantiles.p90_ms is 'Nine tenths of them took no longer, in milliseconds; off by 9.1 % at most.';
comment on column self.latency_quantiles.p99_ms is 'All but a hundredth of them took no longer, in milliseconds; off by 9.1 % at most.';

-- name: latency
-- when: task.succeeded
merge into self.latency as old
using (
    select
        hour_at,
        model,
        kind,
        lane,
        phase,
        if(us <= 1, 0, ceil(4 * log2(us)))::integer as bucket,
        count(*) as attempts,
        sum(us)::bigint as total_us,
        if(bucket = 0, 0, pow(2, (bucket - 0.5) / 4) / 1e3) as middle_ms
    from (
        select
            date_trunc('hour', ended_at) as hour_at, model, kind, lane,
            unnest(['wait', 'load', 'run']) as phase,
            unnest([round(wait_ms * 1e3), round(load_ms * 1e3), round(run_ms * 1e3)])::bigint as us
        from attempt_rows
        where outcome = 'succeeded'
    )
    where us is not null
    group by all
) as new
on old.hour_at = new.hour_at
    and old.model = new.model
    and old.kind = new.kind
    and old.lane = new.lane
    and old.phase = new.phase
    and old.bucket = new.bucket
when matched then update set attempts = old.attempts + new.attempts, total_us = old.total_us + new.total_us
when not matched then insert by name;
