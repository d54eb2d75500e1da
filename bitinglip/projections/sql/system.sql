-- What the projector itself remembers: how far each stream is applied, and which SQL made the tables.

-- name: table
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
    projection varchar primary key,
    version varchar not null
);

comment on table projection_versions is 'Which version of each projection made its table; one row per projection.';
comment on column projection_versions.projection is 'Name of the projection.';
comment on column projection_versions.version is 'Digest of the SQL that makes its rows.';

-- name: versions
select projection, version from projection_versions;

-- name: add_version
insert into projection_versions values ($projection, $version);

-- name: checkpoints
select stream, sequence, stream_created from checkpoints;

-- name: add_checkpoint
insert or replace into checkpoints values ($stream, 0, $created);

-- name: advance
update checkpoints set sequence = $sequence where stream = $stream;

-- name: schema
select tables.table_name, tables.comment, columns.column_name, lower(columns.data_type), columns.comment
from duckdb_columns() as columns
join duckdb_tables() as tables on tables.table_oid = columns.table_oid and tables.database_oid = columns.database_oid
where not tables.temporary
order by tables.table_name, columns.column_index;
