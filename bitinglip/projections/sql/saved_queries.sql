-- Grain: one row per saved query.
-- Units: times are the events' own `time`, UTC.
--
-- streams: LEDGER

-- name: table
create table self.saved_queries (
    name varchar primary key,
    sql varchar not null,
    description varchar,
    parameters json not null,
    saved_at timestamp not null,
    saved_by varchar,
    last_sequence ubigint not null
);

comment on table self.saved_queries is 'SQL that was given a name; one row per name.';
comment on column self.saved_queries.name is 'What it is called.';
comment on column self.saved_queries.sql is 'One SELECT.';
comment on column self.saved_queries.description is 'What it answers; null if nobody said.';
comment on column self.saved_queries.parameters is 'The parameters that it takes, by name: type, default, required, description.';
comment on column self.saved_queries.saved_at is 'When it was last saved (UTC).';
comment on column self.saved_queries.saved_by is 'API key that saved it; null without keys.';
comment on column self.saved_queries.last_sequence is 'Sequence of its last event in LEDGER.';

-- name: apply
-- when: query.*
create or replace temp table query_steps as
select
    about as name, type, time, sequence,
    json_transform(
        data, '{"sql": "VARCHAR", "description": "VARCHAR", "parameters": "JSON", "by": "VARCHAR"}'
    ) as said
from batch
where starts_with(type, 'query.')
qualify row_number() over (partition by about order by sequence desc) = 1;

delete from self.saved_queries where name in (select name from query_steps);

insert into self.saved_queries
select name, said.sql, said.description, coalesce(said.parameters, '{}'), time, said.by, sequence
from query_steps
where type = 'query.saved';
