-- The log by days: a partition for each, dropped whole when its time is over; what is needed to find
-- a dataset, a row or a moment without reading what does not concern it; and digests by which it
-- can be shown that nothing is missing.

ALTER TABLE log_chunks RENAME TO log_chunks_before;
ALTER TABLE log_chunks_before RENAME CONSTRAINT log_chunks_pkey TO log_chunks_before_pkey;

-- day is the UTC day of the append and never falls within a source, whatever the clock does, so that
-- days are in the order of positions. checksum is the SHA-256 of payload; chain is that of
-- previous || first_position || last_position || checksum, where previous is the chain of the chunk
-- before (32 zero bytes before the first). committed_from is the earliest commit in the chunk,
-- committed_upto the latest up to its end in the whole log: never falling, so that a moment is found
-- by an index although commits are not in the order of their clocks.
CREATE TABLE log_chunks (
    source_id      integer NOT NULL,
    day            date NOT NULL,
    first_position text COLLATE "C" NOT NULL,
    last_position  text COLLATE "C" NOT NULL,
    changes        integer NOT NULL,
    bytes          integer NOT NULL,
    datasets       integer[] NOT NULL,
    committed_from timestamptz NOT NULL,
    committed_upto timestamptz NOT NULL,
    checksum       bytea NOT NULL,
    previous       bytea NOT NULL,
    chain          bytea NOT NULL,
    payload        bytea NOT NULL,
    appended_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, last_position, day),
    CHECK (first_position <= last_position)
) PARTITION BY RANGE (day);
ALTER TABLE log_chunks ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX log_chunks_committed ON log_chunks (source_id, committed_upto, last_position);

-- What a chunk holds of one dataset. key_filter is a Bloom filter over the values of key_columns; it
-- is null when a change in the chunk may concern any row. total_changes and total_digest count
-- everything the log ever held of the dataset up to the chunk's end.
CREATE TABLE log_parts (
    source_id      integer NOT NULL,
    dataset_id     integer NOT NULL,
    day            date NOT NULL,
    last_position  text COLLATE "C" NOT NULL,
    changes        integer NOT NULL,
    key_columns    text[],
    key_filter     bytea,
    total_changes  bigint NOT NULL,
    total_digest   bytea,
    PRIMARY KEY (source_id, dataset_id, last_position, day)
) PARTITION BY RANGE (day);
-- Bits do not compress.
ALTER TABLE log_parts ALTER COLUMN key_filter SET STORAGE EXTERNAL;

-- Sums of a source's day, so that retention need not look at chunks.
CREATE TABLE log_days (
    source_id      integer NOT NULL,
    day            date NOT NULL,
    first_position text COLLATE "C" NOT NULL,
    last_position  text COLLATE "C" NOT NULL,
    chunks         bigint NOT NULL,
    changes        bigint NOT NULL,
    bytes          bigint NOT NULL,
    PRIMARY KEY (source_id, day)
);

-- Everything the log ever held of a dataset.
CREATE TABLE log_totals (
    source_id  integer NOT NULL,
    dataset_id integer NOT NULL,
    changes    bigint NOT NULL,
    digest     bytea NOT NULL,
    PRIMARY KEY (source_id, dataset_id)
);

-- Whose unread changes are not trimmed: holder has everything up to position and wants the rest.
CREATE TABLE log_protections (
    source_id  integer NOT NULL,
    holder     text NOT NULL,
    position   text COLLATE "C" NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, holder)
);

-- The state after the last chunk, and that at the place up to which chunks were trimmed.
ALTER TABLE log_ends
    ADD COLUMN day date NOT NULL DEFAULT '1970-01-01',
    ADD COLUMN chain bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    ADD COLUMN changes bigint NOT NULL DEFAULT 0,
    ADD COLUMN committed_upto timestamptz NOT NULL DEFAULT 'epoch',
    ADD COLUMN trimmed_chain bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    ADD COLUMN trimmed_committed timestamptz NOT NULL DEFAULT 'epoch',
    ADD COLUMN trimmed_reason text NOT NULL DEFAULT 'retention';

-- The log that was there before is carried over, however large it is. When its changes were
-- committed is not known: the time of the append stands in.
SET LOCAL statement_timeout = 0;
DO $$
DECLARE old record; source integer := -1; link bytea; upto timestamptz; this_day date;
BEGIN
    FOR old IN SELECT * FROM log_chunks_before ORDER BY source_id, last_position LOOP
        IF old.source_id <> source THEN
            source := old.source_id;
            link := decode(repeat('00', 32), 'hex');
            upto := 'epoch';
        END IF;
        upto := greatest(upto, old.appended_at);
        this_day := (upto AT TIME ZONE 'UTC')::date;
        IF to_regclass('log_chunks_' || to_char(this_day, 'YYYYMMDD')) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF log_chunks FOR VALUES FROM (%L) TO (%L)',
                'log_chunks_' || to_char(this_day, 'YYYYMMDD'), this_day, this_day + 1);
            EXECUTE format('CREATE TABLE %I PARTITION OF log_parts FOR VALUES FROM (%L) TO (%L)',
                'log_parts_' || to_char(this_day, 'YYYYMMDD'), this_day, this_day + 1);
        END IF;
        INSERT INTO log_chunks VALUES (source, this_day, old.first_position, old.last_position,
            old.changes, old.bytes, old.datasets, old.appended_at, upto, sha256(old.payload), link,
            sha256(link || convert_to(old.first_position || old.last_position, 'UTF8')
                   || sha256(old.payload)),
            old.payload, old.appended_at)
        RETURNING chain INTO link;
        INSERT INTO log_parts (source_id, dataset_id, day, last_position, changes, total_changes)
            SELECT source, id, this_day, old.last_position, 0, 0 FROM unnest(old.datasets) AS id;
        INSERT INTO log_days VALUES (source, this_day, old.first_position, old.last_position, 1,
            old.changes, octet_length(old.payload))
        ON CONFLICT (source_id, day) DO UPDATE SET
            last_position = excluded.last_position, chunks = log_days.chunks + 1,
            changes = log_days.changes + excluded.changes, bytes = log_days.bytes + excluded.bytes;
        UPDATE log_ends SET day = this_day, chain = link, changes = log_ends.changes + old.changes,
            committed_upto = upto WHERE source_id = source;
    END LOOP;
END $$;
DROP TABLE log_chunks_before;
