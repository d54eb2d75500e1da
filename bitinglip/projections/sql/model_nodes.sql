-- Grain: one row per revision of a model and node that was asked to have it, or ever had it.
-- Units: times are the events' own `time`, UTC; sizes are bytes.
--
-- What an event means depends on the ones before it, so the events of a row are folded one by one, by the same rules as
-- in `models/state.py`. An event is a step; a row is what the steps so far have come to, and has the same fields. What
-- is told of an import that failed is about no revision, and so in no row.
--
-- streams: MODELS

-- name: table
create table self.model_nodes (
    reference varchar not null,
    revision varchar not null,
    node_id varchar not null,
    status varchar not null,
    pinned boolean not null,
    asked boolean not null,
    done_bytes bigint not null,
    total_bytes bigint not null,
    bytes_per_s double,
    left_s double,
    stored_bytes bigint not null,
    code varchar,
    problem varchar,
    remedy varchar,
    retry_at timestamp,
    check_asked varchar,
    checked_at timestamp,
    changed_at timestamp not null,
    last_sequence ubigint not null,
    primary key (reference, revision, node_id)
);

comment on table self.model_nodes is 'Which node has, or is to have, which revision of a model; one row per revision and node.';
comment on column self.model_nodes.reference is 'The model, as org/name.';
comment on column self.model_nodes.revision is 'Its revision.';
comment on column self.model_nodes.node_id is 'The node.';
comment on column self.model_nodes.status is 'absent, wanted, fetching, stored, failed, stopped or removing.';
comment on column self.model_nodes.pinned is 'Whether the node keeps it, whatever room others need.';
comment on column self.model_nodes.asked is 'Whether it was asked for while it was there: it comes back if it turns out to be gone.';
comment on column self.model_nodes.done_bytes is 'Bytes of it that are there, while it is fetched and after.';
comment on column self.model_nodes.total_bytes is 'Bytes of all its files.';
comment on column self.model_nodes.bytes_per_s is 'How fast it comes, in bytes a second; null while that is not known.';
comment on column self.model_nodes.left_s is 'Estimate of the seconds that are left.';
comment on column self.model_nodes.stored_bytes is 'Bytes that it takes on the node''s disk.';
comment on column self.model_nodes.code is 'Error that a fetch ended with, as in the table of errors.';
comment on column self.model_nodes.problem is 'What went wrong, in words.';
comment on column self.model_nodes.remedy is 'What can be done about it.';
comment on column self.model_nodes.retry_at is 'When a fetch that failed is tried again (UTC); null: not before somebody asks anew.';
comment on column self.model_nodes.check_asked is 'check or repair, if that was asked for and is not done.';
comment on column self.model_nodes.checked_at is 'When its files were last compared with their digests (UTC).';
comment on column self.model_nodes.changed_at is 'Time of the last event that changed the row (UTC).';
comment on column self.model_nodes.last_sequence is 'Sequence of the last event that changed the row, in MODELS.';

-- name: apply
-- when: model.fetch_* model.removal_asked model.check_asked model.pinned model.unpinned model.stored model.dropped model.kept model.checked
create or replace temp table model_node_steps as
with said as (
    select
        sequence,
        type,
        time,
        json_transform(data, '{
            "reference": "VARCHAR", "revision": "VARCHAR", "node_id": "VARCHAR", "nodes": ["VARCHAR"],
            "done_bytes": "BIGINT", "total_bytes": "BIGINT", "missing_bytes": "BIGINT", "bytes_per_s": "DOUBLE",
            "left_s": "DOUBLE", "size_bytes": "BIGINT", "code": "VARCHAR", "message": "VARCHAR", "problem": "VARCHAR",
            "remedy": "VARCHAR", "reason": "VARCHAR", "retry_in_s": "DOUBLE", "repair": "BOOLEAN"
        }') as said
    from batch
    where type in (
        'model.fetch_asked', 'model.fetch_cancelled', 'model.removal_asked', 'model.check_asked', 'model.pinned',
        'model.unpinned',
        'model.fetch_started', 'model.fetch_progressed', 'model.fetch_failed', 'model.fetch_stopped', 'model.stored',
        'model.dropped', 'model.kept', 'model.checked'
    )
)
select
    said.reference as reference,
    said.revision as revision,
    unnest(coalesce(said.nodes, [said.node_id])) as node_id,
    {
        'type': type,
        'status': null::varchar,
        'pinned': null::boolean,
        'asked': null::boolean,
        'done_bytes': case type
            when 'model.fetch_started' then said.total_bytes - said.missing_bytes
            when 'model.stored' then said.size_bytes
            else said.done_bytes
        end,
        'total_bytes': coalesce(said.total_bytes, said.size_bytes),
        'bytes_per_s': said.bytes_per_s,
        'left_s': said.left_s,
        'stored_bytes': said.size_bytes,
        'code': said.code,
        'problem': coalesce(said.message, said.problem),
        'remedy': said.remedy,
        'reason': said.reason,
        'retry_at': time + to_microseconds(round(said.retry_in_s * 1e6)::bigint),
        'check_asked': if(said.repair, 'repair', 'check'),
        'checked_at': time,
        'changed_at': time,
        'sequence': sequence
    } as step
from said;

create or replace temp table model_node_rows as
with steps as (
    select
        new.reference,
        new.revision,
        new.node_id,
        {
            'type': null::varchar,
            'status': coalesce(any_value(old.status), 'absent'),
            'pinned': coalesce(any_value(old.pinned), false),
            'asked': coalesce(any_value(old.asked), false),
            'done_bytes': coalesce(any_value(old.done_bytes), 0),
            'total_bytes': coalesce(any_value(old.total_bytes), 0),
            'bytes_per_s': any_value(old.bytes_per_s),
            'left_s': any_value(old.left_s),
            'stored_bytes': coalesce(any_value(old.stored_bytes), 0),
            'code': any_value(old.code),
            'problem': any_value(old.problem),
            'remedy': any_value(old.remedy),
            'reason': null::varchar,
            'retry_at': any_value(old.retry_at),
            'check_asked': any_value(old.check_asked),
            'checked_at': any_value(old.checked_at),
            'changed_at': any_value(old.changed_at),
            'sequence': coalesce(any_value(old.last_sequence), 0)
        } as before,
        list(new.step order by new.step.sequence) as since
    from model_node_steps as new
    left join self.model_nodes as old
        on old.reference = new.reference and old.revision = new.revision and old.node_id = new.node_id
    where new.reference is not null and new.revision <> 'import' and new.node_id is not null
    group by all
)
select
    reference,
    revision,
    node_id,
    list_reduce(
        list_prepend(before, since),
        lambda row, step: case
            when step.type = 'model.fetch_progressed' and row.status <> 'fetching' then row
            when step.type = 'model.check_asked' and row.status <> 'stored' then row
            when step.type = 'model.check_asked' then struct_update(row, check_asked := step.check_asked)
            when step.type in ('model.fetch_started', 'model.fetch_failed') and row.status in ('stopped', 'removing')
                then row
            when step.type = 'model.fetch_stopped' and row.status = 'removing' then row
            else {
                'type': step.type,
                'status': case
                    when step.type in ('model.fetch_asked', 'model.pinned') then case
                        when row.status in ('stored', 'removing') then 'stored'
                        when row.status = 'fetching' then 'fetching'
                        else 'wanted'
                    end
                    when step.type = 'model.fetch_cancelled' then
                        if(row.status in ('wanted', 'fetching', 'failed'), 'stopped', row.status)
                    when step.type = 'model.removal_asked' then if(row.status = 'absent', 'absent', 'removing')
                    when step.type = 'model.fetch_started' then 'fetching'
                    when step.type = 'model.fetch_failed' then 'failed'
                    when step.type = 'model.fetch_stopped' then 'stopped'
                    when step.type = 'model.stored' then if(row.status = 'removing', 'removing', 'stored')
                    when step.type = 'model.kept' then 'stored'
                    when step.type = 'model.dropped' then if(
                        step.reason <> 'evicted'
                        and (
                            row.pinned or row.asked
                            or (step.reason = 'damaged' and row.check_asked is not distinct from 'repair')
                        ),
                        'wanted', 'absent'
                    )
                    else row.status
                end,
                'pinned': case step.type
                    when 'model.pinned' then true
                    when 'model.unpinned' then false
                    when 'model.removal_asked' then false
                    when 'model.fetch_cancelled' then row.pinned and row.status not in ('wanted', 'fetching', 'failed')
                    else row.pinned
                end,
                'asked': case
                    when step.type = 'model.fetch_asked' then row.status in ('stored', 'removing')
                    when step.type in ('model.removal_asked', 'model.stored', 'model.dropped') then false
                    else row.asked
                end,
                'done_bytes': case
                    when step.type = 'model.dropped' then 0
                    when step.type in (
                        'model.fetch_started', 'model.fetch_progressed', 'model.fetch_stopped', 'model.stored'
                    ) then step.done_bytes
                    else row.done_bytes
                end,
                'total_bytes': case
                    when step.type = 'model.dropped' then 0
                    when step.type in ('model.fetch_started', 'model.fetch_progressed', 'model.stored')
                        then step.total_bytes
                    else row.total_bytes
                end,
                'bytes_per_s': case
                    when step.type = 'model.fetch_progressed' then step.bytes_per_s
                    when step.type in ('model.dropped', 'model.stored') then null
                    else row.bytes_per_s
                end,
                'left_s': case
                    when step.type = 'model.fetch_progressed' then step.left_s
                    when step.type in (
                        'model.dropped', 'model.stored', 'model.fetch_failed', 'model.fetch_stopped'
                    ) then null
                    else row.left_s
                end,
                'stored_bytes': case step.type
                    when 'model.dropped' then 0
                    when 'model.stored' then step.stored_bytes
                    else row.stored_bytes
                end,
                'code': case
                    when step.type = 'model.fetch_failed' then step.code
                    when step.type in (
                        'model.fetch_started', 'model.fetch_progressed', 'model.fetch_stopped', 'model.kept',
                        'model.checked'
                    ) then row.code
                end,
                'problem': case
                    when step.type in ('model.fetch_failed', 'model.kept') then step.problem
                    when step.type in ('model.fetch_progressed', 'model.fetch_stopped', 'model.checked') then row.problem
                end,
                'remedy': case
                    when step.type = 'model.fetch_failed' then step.remedy
                    when step.type in (
                        'model.fetch_started', 'model.fetch_progressed', 'model.fetch_stopped', 'model.kept',
                        'model.checked'
                    ) then row.remedy
                end,
                'reason': null::varchar,
                'retry_at': case
                    when step.type = 'model.fetch_failed' then step.retry_at
                    when step.type in (
                        'model.fetch_started', 'model.fetch_progressed', 'model.fetch_stopped', 'model.stored',
                        'model.kept', 'model.checked'
                    ) then row.retry_at
                end,
                'check_asked': if(step.type not in ('model.checked', 'model.dropped'), row.check_asked, null),
                'checked_at': case
                    when step.type in ('model.stored', 'model.checked') then step.checked_at
                    when step.type <> 'model.dropped' then row.checked_at
                end,
                'changed_at': step.changed_at,
                'sequence': step.sequence
            }
        end
    ) as folded
from steps;

insert or replace into self.model_nodes
select
    reference, revision, node_id, folded.status, folded.pinned, folded.asked, folded.done_bytes, folded.total_bytes,
    folded.bytes_per_s, folded.left_s, folded.stored_bytes, folded.code, folded.problem, folded.remedy,
    folded.retry_at, folded.check_asked, folded.checked_at, folded.changed_at, folded.sequence
from model_node_rows
where folded.changed_at is not null;
