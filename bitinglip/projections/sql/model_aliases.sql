-- Grain: one row per alias that stands for a revision of a model.
-- Units: times are the events' own `time`, UTC.
--
-- streams: MODELS

-- name: table
create table self.model_aliases (
    alias varchar primary key,
    model varchar not null,
    revision varchar not null,
    set_at timestamp not null,
    set_by varchar,
    previous_model varchar,
    previous_revision varchar,
    last_sequence ubigint not null
);

comment on table self.model_aliases is 'Names that stand for a revision of a model; one row per alias.';
comment on column self.model_aliases.alias is 'The name.';
comment on column self.model_aliases.model is 'The model that it stands for, as org/name.';
comment on column self.model_aliases.revision is 'The revision that it stands for.';
comment on column self.model_aliases.set_at is 'When it was last set (UTC).';
comment on column self.model_aliases.set_by is 'API key that set it; null without keys.';
comment on column self.model_aliases.previous_model is 'The model that it stood for before; null if for none.';
comment on column self.model_aliases.previous_revision is 'The revision that it stood for before.';
comment on column self.model_aliases.last_sequence is 'Sequence of its last event in MODELS.';

-- name: apply
-- when: model.alias_*
create or replace temp table alias_steps as
select
    said.reference as alias,
    if(type = 'model.alias_set', said.model, null) as model,
    if(type = 'model.alias_set', said.revision, null) as revision,
    time as set_at,
    said.by as set_by,
    sequence
from (
    select
        sequence,
        type,
        time,
        json_transform(
            data, '{"reference": "VARCHAR", "model": "VARCHAR", "revision": "VARCHAR", "by": "VARCHAR"}'
        ) as said
    from batch
    where type in ('model.alias_set', 'model.alias_removed')
)
where said.reference is not null;

create or replace temp table alias_rows as
select
    alias, model, revision, set_at, set_by,
    lag(model) over before as previous_model,
    lag(revision) over before as previous_revision,
    sequence as last_sequence
from (
    from alias_steps
    union all by name
    select alias, model, revision, set_at, set_by, last_sequence as sequence
    from self.model_aliases
    where alias in (select alias from alias_steps)
)
window before as (partition by alias order by sequence)
qualify row_number() over (partition by alias order by sequence desc) = 1;

delete from self.model_aliases where alias in (select alias from alias_steps);

insert into self.model_aliases
select alias, model, revision, set_at, set_by, previous_model, previous_revision, last_sequence
from alias_rows
where model is not null;
