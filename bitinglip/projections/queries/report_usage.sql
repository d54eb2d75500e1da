-- One row per group and bucket of time; `$by`: model, key or kind; `$step`: hour, day or week.
select
    case $by when 'model' then model when 'key' then coalesce(key_id, '(no key)') else kind end as name,
    date_trunc($step, hour_at)::timestamp as bucket_at,
    sum(succeeded)::bigint as succeeded,
    sum(failed)::bigint as failed,
    sum(cancelled)::bigint as cancelled,
    sum(expired)::bigint as expired,
    sum(dead_lettered)::bigint as dead_lettered,
    sum(attempts)::bigint as attempts,
    sum(run_us) / 1e6 as run_s,
    sum(input_tokens)::bigint as input_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(images)::bigint as images,
    sum(audio_in_ms + audio_out_ms)::bigint as audio_ms,
    sum(energy_mj) / 1e3 as energy_j
from usage
where hour_at >= $since and hour_at < $until
    and ($key is null or key_id = $key) and ($model is null or model = $model)
group by all;
