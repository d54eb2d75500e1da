-- Grain: one row per model reference, kind and revision that a worker ever registered.
-- Units: times are the events' own `time`, UTC; sizes are bytes, contexts tokens.

-- name: table
create table models (
    reference varchar not null,
    kind varchar not null,
    revision varchar,
    architecture varchar,
    size_bytes bigint,
    context_tokens bigint,
    registered_at timestamp not null,
    last_sequence ubigint not null
);

comment on table models is 'Models that a worker can run; one row per reference, kind and revision.';
comment on column models.reference is 'The model, as org/name.';
comment on column models.kind is 'Kind of task that it serves.';
comment on column models.revision is 'Commit of its weights; null for a model without one.';
comment on column models.architecture is 'Name of its architecture, as its configuration says.';
comment on column models.size_bytes is 'Size of its weights on disk, in bytes.';
comment on column models.context_tokens is 'Longest context, in tokens; null where that has no meaning.';
comment on column models.registered_at is 'When it was last registered (UTC).';
comment on column models.last_sequence is 'Sequence of its last event in MODELS.';

-- name: apply
create or replace temp table model_rows as
select
    said.reference,
    said.kind,
    said.revision,
    max_by(said, sequence) as said,
    max_by(time, sequence) as registered_at,
    max(sequence) as last_sequence
from (
    select
        sequence,
        time,
        json_transform(data, '{
            "reference": "VARCHAR", "kind": "VARCHAR", "revision": "VARCHAR", "architecture": "VARCHAR",
            "size_bytes": "BIGINT", "context_tokens": "BIGINT"
        }') as said
    from batch
    where type = 'model.registered'
)
where said.reference is not null and said.kind is not null
group by all;

delete from models using model_rows
where models.reference = model_rows.reference
    and models.kind = model_rows.kind
    and models.revision is not distinct from model_rows.revision;

insert into models
select reference, kind, revision, said.architecture, said.size_bytes, said.context_tokens, registered_at, last_sequence
from model_rows;
