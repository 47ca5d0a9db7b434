-- What datasets' tables were when, under which other names they can be found, and which tables nobody
-- has registered.

-- A version is valid from its position in the stream until the next. Nothing is changed afterwards.
CREATE TABLE dataset_schemas (
    dataset_id integer NOT NULL REFERENCES datasets,
    version integer NOT NULL CHECK (version > 0),
    from_position text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    cause text NOT NULL CHECK (cause IN ('installed', 'command', 'stream')),
    -- Unknown where the stream alone showed the change.
    command text,
    service text,
    role text,
    shape jsonb NOT NULL,
    difference jsonb,
    PRIMARY KEY (dataset_id, version),
    UNIQUE (dataset_id, from_position)
);

-- The dataset of each table's OID, of tables that are gone too: the stream may still hold their changes.
-- An epoch may be of another cluster, where OIDs mean something else.
CREATE TABLE dataset_relations (
    source_id integer NOT NULL REFERENCES sources,
    epoch smallint NOT NULL,
    relid bigint NOT NULL,
    dataset_id integer NOT NULL REFERENCES datasets,
    PRIMARY KEY (source_id, epoch, relid)
);

-- Names that a dataset's table has or had beside the one it is registered under.
CREATE TABLE dataset_aliases (
    source_id integer NOT NULL REFERENCES sources,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    dataset_id integer NOT NULL REFERENCES datasets,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, schema_name, table_name)
);
CREATE INDEX dataset_aliases_dataset ON dataset_aliases (dataset_id);

CREATE TABLE unowned_tables (
    source_id integer NOT NULL REFERENCES sources,
    relid bigint NOT NULL,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    command text NOT NULL,
    service text,
    role text NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (source_id, relid)
);

-- Foreign keys of other services' tables to a dataset.
CREATE TABLE dataset_couplings (
    dataset_id integer NOT NULL REFERENCES datasets,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    constraint_name text NOT NULL,
    command text NOT NULL,
    service text,
    role text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (dataset_id, schema_name, table_name, constraint_name)
);

-- Up to where in a source's stream all of this is recorded: what is read again is not recorded again.
ALTER TABLE sources ADD COLUMN schema_position text COLLATE "C";

-- A dropped table's dataset stays, with its history.
ALTER TABLE datasets
    ADD COLUMN dropped_at timestamptz,
    DROP CONSTRAINT datasets_guard_check,
    ADD CONSTRAINT datasets_guard_check CHECK (guard IN ('pending', 'installed', 'dropped'));
