-- The state of the past: which rows have changed since a moment, and the events that make them anew.
--
-- `self` is where the served tables are. What is made anew lies in the cursor's own temporary tables, written by the
-- projections' own blocks; `chosen` says of what (`about`), and from which sequence on.

-- name: payloads
create or replace temp view payloads as
select
    stream,
    sequence,
    about,
    type,
    recorded_at,
    epoch_ns(recorded_at) as time_ns,
    concat(
        '{"id":', to_json(id), ',"type":', to_json(type), ',"dataschema":', to_json('urn:bitinglip:' || type || ':' || version),
        ',"source":', to_json(source), ',"subject":', to_json(about), ',"time":"',
        strftime(time, '%Y-%m-%dT%H:%M:%S.%fZ'), '"',
        if(causation is null, '', ',"causationid":' || to_json(causation)), ',"data":', data, '}'
    ) as payload
from self.events;

-- name: incoming
-- $first is the least `first` of what is chosen: given as a number it lets all that is before it be passed over unread.
select sequence, time_ns, payload
from payloads join chosen on chosen.about = payloads.about
where stream = $stream
    and sequence between $first and $last
    and sequence >= first
    and (recorded_at >= $ticks_since or type not in $ticks);

-- name: history
select sequence, time_ns, payload
from payloads
where stream = $stream and sequence <= $last and ($about is null or about = $about)
order by sequence;

-- name: sequences
select stream, max(sequence) filter (recorded_at <= $at), max(sequence), min(recorded_at)
from self.events
group by stream;

-- name: time_of
select arg_max(recorded_at, sequence) filter (sequence <= $sequence), min(recorded_at)
from self.events
where stream = 'TASKS';

-- name: oldest_tick
select min(recorded_at) from self.events where stream = $stream and type in $ticks;

-- name: changed_tasks
select count(*) from self.tasks where submitted_sequence <= $last and last_sequence > $last;

-- name: choose_tasks
create or replace temp table chosen as
select unnest($ids)::varchar as about, unnest($firsts)::ubigint as first;

-- name: choose_batches
create or replace temp table chosen as
select batch_id as about, opened_sequence as first
from self.batches
where opened_sequence <= $last and last_sequence > $last;

-- name: choose_workers
create or replace temp table chosen as
select worker_id as about, coalesce(max(events.sequence), 0)::ubigint as first
from self.workers
left join self.events
    on events.stream = 'WORKERS' and events.type = 'worker.started' and events.about = worker_id and events.sequence <= $last
where workers.last_sequence > $last
group by worker_id;

-- name: choose_nodes
create or replace temp table chosen as
select node_id as about, coalesce(max(events.sequence), 0)::ubigint as first
from self.nodes
left join self.events
    on events.stream = 'WORKERS' and events.type = 'node.started' and events.about = node_id and events.sequence <= $last
where nodes.last_sequence > $last
group by node_id;

-- name: retries
select retry_of, task_id
from self.tasks
where retry_of in $ids and submitted_sequence <= $last
order by submitted_sequence;
