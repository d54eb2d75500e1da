-- What the projector itself remembers: how far each stream is applied, and which SQL made which tables.
--
-- The tables of a version of a projection lie in a schema of their own; what is asked are views in `main`. While another
-- version is made, both are here, each with the text that makes its rows.

-- name: table
create table storage_format (
    format integer not null
);

comment on table storage_format is 'How this file is laid out; one row.';
comment on column storage_format.format is 'Number of the layout; a file of another one is made anew from the log.';

create table checkpoints (
    stream varchar primary key,
    sequence ubigint not null,
    stream_created varchar
);

comment on table checkpoints is 'How far each stream of the log is applied; one row per stream.';
comment on column checkpoints.stream is 'Name of the stream.';
comment on column checkpoints.sequence is 'Sequence of the last event that is applied; 0 before the first.';
comment on column checkpoints.stream_created is 'When the stream was made, by which a log that was made anew is known.';

create table projection_versions (
    home varchar primary key,
    projection varchar not null,
    version varchar not null,
    serving boolean not null,
    text varchar not null,
    stage varchar not null
);

comment on table projection_versions is 'Versions of projections in this file; one row per version.';
comment on column projection_versions.home is 'Schema of its tables.';
comment on column projection_versions.projection is 'Name of the projection.';
comment on column projection_versions.version is 'Digest of the SQL that makes its rows.';
comment on column projection_versions.serving is 'Whether it is asked, and kept up with the log; else it is being made.';
comment on column projection_versions.text is 'The SQL that makes its rows.';
comment on column projection_versions.stage is 'The SQL that stages a batch for it.';

create table build_checkpoints (
    home varchar not null,
    stream varchar not null,
    sequence ubigint not null,
    primary key (home, stream)
);

comment on table build_checkpoints is 'How far versions are that are being made, or trail; one row per version and stream.';
comment on column build_checkpoints.home is 'Schema of the version''s tables.';
comment on column build_checkpoints.stream is 'Name of the stream.';
comment on column build_checkpoints.sequence is 'Sequence of the last event that is applied to it; 0 before the first.';

-- name: set_format
insert into storage_format values ($format);

-- name: format
select format from storage_format;

-- name: versions
select home, projection, version, serving, text, stage from projection_versions order by home;

-- name: add_version
insert into projection_versions values ($home, $projection, $version, $serving, $text, $stage);

-- name: drop_version
delete from projection_versions where home = $home;

-- name: serve_version
update projection_versions set serving = true where home = $home;

-- name: checkpoints
select stream, sequence, stream_created from checkpoints;

-- name: add_checkpoint
insert or replace into checkpoints values ($stream, 0, $created);

-- name: advance
update checkpoints set sequence = $sequence where stream = $stream;

-- name: build_checkpoints
select stream, sequence from build_checkpoints where home = $home;

-- name: advance_build
insert or replace into build_checkpoints values ($home, $stream, $sequence);

-- name: trail
insert or ignore into build_checkpoints
select $home, stream, coalesce(sequence, 0)
from (select unnest($streams::varchar[]) as stream) left join checkpoints using (stream);

-- name: drop_build
delete from build_checkpoints where home = $home;

-- name: columns
select schema_name, table_name, column_name, data_type, comment
from duckdb_columns()
where database_name = current_database()
order by schema_name, table_name, column_index;

-- name: comments
select table_name, comment from duckdb_tables() where schema_name = $home and database_name = current_database()
union all
select view_name, comment from duckdb_views() where schema_name = $home and database_name = current_database();

-- name: tables
select table_name from duckdb_tables() where schema_name = $home and database_name = current_database();

-- name: rows
select table_name, estimated_size
from duckdb_tables()
where schema_name = $home and database_name = current_database()
order by table_name;

-- name: schema
select told.name, told.comment, columns.column_name, lower(columns.data_type), columns.comment
from duckdb_columns() as columns
join (
    select table_oid as oid, table_name as name, comment
    from duckdb_tables()
    where schema_name = 'main' and not temporary and database_name = current_database()
    union all
    select view_oid, view_name, comment
    from duckdb_views()
    where schema_name = 'main' and not internal and not temporary and database_name = current_database()
) as told on told.oid = columns.table_oid
where columns.schema_name = 'main' and columns.database_name = current_database() and not columns.internal
order by told.name, columns.column_index;

-- name: archived
create table if not exists archived (
    stream varchar primary key,
    up_to ubigint not null
);

comment on table archived is 'Up to where events are read from the archive; one row per stream.';
comment on column archived.stream is 'Name of the stream.';
comment on column archived.up_to is 'Sequence of the last event that is read from the archive.';

create schema if not exists cold;

-- name: cold_file
copy (
    select
        null::varchar as stream, null::ubigint as sequence, null::bigint as time_ns, null::blob as subject,
        null::blob as payload, null::timestamp as recorded_at, null::timestamp as time, null::varchar as id,
        null::varchar as type, null::usmallint as version, null::varchar as source, null::varchar as about,
        null::varchar as causation
    where false
) to $file (format parquet);

-- name: cold
create or replace view cold.events as
select
    stream, sequence, recorded_at, time, id, type, version, source, about, causation,
    case
        when type = 'corrupt' then json_object('base64', base64(payload))
        else json_extract(decode(payload), '$.data')
    end as data
from read_parquet($files, hive_partitioning = false, union_by_name = false);

-- name: cold_none
create or replace view cold.events as
select
    null::varchar as stream, null::ubigint as sequence, null::timestamp as recorded_at, null::timestamp as time,
    null::varchar as id, null::varchar as type, null::usmallint as version, null::varchar as source,
    null::varchar as about, null::varchar as causation, null::json as data
where false;

-- name: joined
(
    select hot.*
    from self.events as hot left join main.archived as bound on bound.stream = hot.stream
    where hot.sequence > coalesce(bound.up_to, 0) or hot.type in ($ticks)
    union all by name
    select kept.*
    from cold.events as kept join main.archived as bound on bound.stream = kept.stream
    where kept.sequence <= bound.up_to
)

-- name: drop_archived
delete from self.events where stream = $stream and sequence <= $up_to and type not in (select unnest($ticks::varchar[]));

-- name: set_archived
insert or replace into archived values ($stream, $up_to);
