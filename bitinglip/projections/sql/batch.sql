-- The batch: one row per message that the projector was handed, its fields taken out of the JSON in one parse.
-- Every projection is applied to this table, inside the same transaction.
--
-- `incoming` is the Arrow table (sequence, time_ns, payload). Times are UTC. Bytes that are no JSON are an error here,
-- an envelope that lacks a field is one in `events.sql`; the writer looks for the message and marks it as corrupt.
-- What `state_key` is, `tasks.sql` says; it is made here because a table more would cost a tenth of the whole.

-- name: stage
create or replace temp table batch as
select
    *,
    case type
        when 'task.submitted' then if(delayed, 4, 5)
        when 'task.queued' then attempt * 4 + 1
        when 'task.assigned' then attempt * 4 + 2
        when 'task.failed' then if(delayed, attempt * 4 + 3, 2147483647)
        when 'task.succeeded' then 2147483647
        when 'task.cancelled' then 2147483647
        when 'task.expired' then 2147483647
        when 'task.dead_lettered' then 2147483647
    end as state_key,
    type = 'task.queued' or state_key = 5 as makes_ready
from (
    select
        $stream::varchar as stream,
        sequence,
        make_timestamp(time_ns // 1000) as recorded_at,
        field[1] as id,
        field[2] as type,
        split_part(field[3], ':', -1)::usmallint as version,
        field[4] as source,
        field[5] as about,
        if(suffix(field[6], 'Z'), field[6]::timestamp, field[6]::timestamptz::timestamp) as time,
        field[7] as causation,
        field[8] as data,
        try_cast(field[9] as integer) as attempt,
        coalesce(field[10], field[11], field[12]) is not null as delayed,
        field[13] as failure_kind,
        field[14] is not null as retries,
        field[15] as reason,
        try_cast(field[16] as double) as next_vram_gb,
        field[17] as actor_key,
        field[18] as actor_address,
        field[19] as request_id
    from (
        select
            sequence,
            time_ns,
            json_extract_string(payload, [
                '$.id', '$.type', '$.dataschema', '$.source', '$.subject', '$.time', '$.causationid', '$.data',
                '$.data.attempt', '$.data.run_at', '$.data.retry_at', '$.data.depends_on', '$.data.failure.kind',
                '$.data.retry_of', '$.data.reason', '$.data.next_vram_gb', '$.actorkey', '$.actoraddress', '$.requestid'
            ]) as field
        from incoming
    )
);

-- name: types
select type, bool_or(retries) from batch group by type;
