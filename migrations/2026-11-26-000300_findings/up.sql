-- What was found in sources, and where guards are not known to have stood.

-- One row from when something was first found until it was gone again. What is found anew later is
-- a row of its own, so that the history shows how often.
CREATE TABLE findings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id integer NOT NULL REFERENCES sources,
    question text NOT NULL
        CHECK (question IN ('data_flow', 'ownership', 'failure_handling', 'observability')),
    kind text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'error')),
    -- Null when it is about the source as a whole.
    dataset text,
    -- What exactly: a table, a function, a role, as the source calls it.
    object text NOT NULL,
    found text NOT NULL,
    expected text NOT NULL,
    mend text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    repaired_at timestamptz
);
CREATE UNIQUE INDEX findings_open ON findings (source_id, kind, object) WHERE repaired_at IS NULL;
CREATE INDEX findings_dataset ON findings (dataset, id);

-- What the installed guard of a source looks like in its catalog, object by object, and up to where
-- in its WAL a comparison last found everything as it should be.
CREATE TABLE guard_baselines (
    source_id integer PRIMARY KEY REFERENCES sources,
    version text NOT NULL,
    objects jsonb NOT NULL,
    sound_lsn bigint
);

-- Stretches of a source's WAL whose changes of a dataset nobody vouches for: from the first commit
-- that may lie in it to the commit with which the guard stood again (null while it lasts).
CREATE TABLE guard_gaps (
    dataset_id integer NOT NULL REFERENCES datasets,
    epoch smallint NOT NULL,
    -- The commit that told of it: with the dataset its identity, so that a message that is read
    -- twice is recorded once.
    told_lsn bigint NOT NULL,
    from_lsn bigint NOT NULL,
    to_lsn bigint CHECK (to_lsn >= told_lsn),
    closed_at timestamptz,
    PRIMARY KEY (dataset_id, epoch, told_lsn),
    CHECK (from_lsn <= told_lsn),
    CHECK ((to_lsn IS NULL) = (closed_at IS NULL))
);
CREATE INDEX guard_gaps_open ON guard_gaps (dataset_id) WHERE to_lsn IS NULL;
