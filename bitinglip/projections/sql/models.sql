-- Grain: one row per model reference, revision and kind that was described, or that a worker ever registered.
-- Units: times are the events' own `time`, UTC; sizes are bytes, contexts tokens.
--
-- Each of the two events has columns of its own; of those that both tell, the last event's value counts.
--
-- streams: MODELS

-- name: table
create table self.models (
    reference varchar not null,
    kind varchar,
    revision varchar,
    architecture varchar,
    size_bytes bigint,
    context_tokens bigint,
    registered_at timestamp,
    described_at timestamp,
    source varchar,
    asked_revision varchar,
    parameters bigint,
    dtype varchar,
    fetch_bytes bigint,
    need_bytes json,
    licence varchar,
    tags json,
    gated boolean,
    parts json,
    last_sequence ubigint not null
);

comment on table self.models is 'Models that were described or that a worker can run; one row per reference, revision and kind.';
comment on column self.models.reference is 'The model, as org/name.';
comment on column self.models.kind is 'Kind of task that it serves; null if no engine takes it.';
comment on column self.models.revision is 'Commit of its weights, or a digest; null for a model without one.';
comment on column self.models.architecture is 'Name of its architecture, as its configuration says.';
comment on column self.models.size_bytes is 'Size of its weights on disk, in bytes, as a worker told it.';
comment on column self.models.context_tokens is 'Longest context, in tokens; null where that has no meaning.';
comment on column self.models.registered_at is 'When a worker last registered it (UTC); null if none did.';
comment on column self.models.described_at is 'When it was last described (UTC); null if it never was.';
comment on column self.models.source is 'Where its files come from: hub, import or upload.';
comment on column self.models.asked_revision is 'Branch, tag or commit that led to this revision.';
comment on column self.models.parameters is 'Numbers in its weights.';
comment on column self.models.dtype is 'Precision of most of its weights, by safetensors'' name.';
comment on column self.models.fetch_bytes is 'Size of the files that are fetched, in bytes.';
comment on column self.models.need_bytes is 'Memory that it needs, running, by the precision that it is loaded in, in bytes.';
comment on column self.models.licence is 'Its licence, as its owner names it.';
comment on column self.models.tags is 'Its owner''s tags.';
comment on column self.models.gated is 'Whether its owner must let one in.';
comment on column self.models.parts is 'References of the models that it needs beside it, by what they are to it.';
comment on column self.models.last_sequence is 'Sequence of its last event in MODELS.';

-- name: apply
-- when: model.registered model.described
create or replace temp table model_changes as
select
    said.reference,
    said.kind,
    said.revision,
    max_by(said.architecture, sequence) as architecture,
    max_by(said.context_tokens, sequence) as context_tokens,
    max_by(said, sequence) filter (type = 'model.registered') as registered,
    max(time) filter (type = 'model.registered') as registered_at,
    max_by(said, sequence) filter (type = 'model.described') as described,
    max(time) filter (type = 'model.described') as described_at,
    max(sequence) as last_sequence
from (
    select
        sequence,
        type,
        time,
        json_transform(data, '{
            "reference": "VARCHAR", "kind": "VARCHAR", "revision": "VARCHAR", "architecture": "VARCHAR",
            "size_bytes": "BIGINT", "context_tokens": "BIGINT", "source": "VARCHAR", "asked_revision": "VARCHAR",
            "parameters": "BIGINT", "dtype": "VARCHAR", "need_bytes": "JSON", "licence": "VARCHAR", "tags": "JSON",
            "gated": "BOOLEAN", "parts": "JSON"
        }') as said
    from batch
    where type in ('model.registered', 'model.described')
)
where said.reference is not null and (said.kind is not null or type = 'model.described')
group by all;

create or replace temp table model_rows as
select
    new.reference,
    new.kind,
    new.revision,
    coalesce(new.architecture, old.architecture) as architecture,
    coalesce(new.registered.size_bytes, old.size_bytes) as size_bytes,
    coalesce(new.context_tokens, old.context_tokens) as context_tokens,
    coalesce(new.registered_at, old.registered_at) as registered_at,
    coalesce(new.described_at, old.described_at) as described_at,
    if(new.described is null, old.source, new.described.source) as source,
    if(new.described is null, old.asked_revision, new.described.asked_revision) as asked_revision,
    if(new.described is null, old.parameters, new.described.parameters) as parameters,
    if(new.described is null, old.dtype, new.described.dtype) as dtype,
    if(new.described is null, old.fetch_bytes, new.described.size_bytes) as fetch_bytes,
    if(new.described is null, old.need_bytes, new.described.need_bytes) as need_bytes,
    if(new.described is null, old.licence, new.described.licence) as licence,
    if(new.described is null, old.tags, new.described.tags) as tags,
    if(new.described is null, old.gated, new.described.gated) as gated,
    if(new.described is null, old.parts, new.described.parts) as parts,
    new.last_sequence
from model_changes as new
left join self.models as old
    on old.reference = new.reference
    and old.kind is not distinct from new.kind
    and old.revision is not distinct from new.revision;

delete from self.models using model_rows
where models.reference = model_rows.reference
    and models.kind is not distinct from model_rows.kind
    and models.revision is not distinct from model_rows.revision;

insert into self.models by name from model_rows;
