-- One row per group, phase and bucket of time with the quantiles; those of all the time have no bucket.
-- `$by`: model, lane or kind; `$step`: hour, day or week.
with told as (
    select
        case $by when 'model' then model when 'lane' then lane else kind end as name,
        phase,
        date_trunc($step, hour_at)::timestamp as bucket_at,
        bucket,
        if(bucket = 0, 0, pow(2, (bucket - 0.5) / 4) / 1e3) as middle_ms,
        sum(attempts) as attempts,
        sum(total_us) as total_us
    from latency
    where hour_at >= $since and hour_at < $until and ($model is null or model = $model)
    group by grouping sets ((name, phase, bucket_at, bucket), (name, phase, bucket))
),
counted as (
    select
        *,
        sum(attempts) over (partition by name, phase, bucket_at order by bucket) as up_to,
        sum(attempts) over (partition by name, phase, bucket_at) as whole
    from told
)
select
    name,
    phase,
    bucket_at,
    max(whole)::bigint as attempts,
    sum(total_us) / max(whole) / 1e3 as mean_ms,
    min(middle_ms) filter (up_to >= 0.5 * whole) as p50_ms,
    min(middle_ms) filter (up_to >= 0.9 * whole) as p90_ms,
    min(middle_ms) filter (up_to >= 0.99 * whole) as p99_ms
from counted
group by all;
