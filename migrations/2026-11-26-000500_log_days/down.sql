ALTER TABLE log_chunks RENAME TO log_chunks_by_day;
ALTER TABLE log_chunks_by_day RENAME CONSTRAINT log_chunks_pkey TO log_chunks_by_day_pkey;
CREATE TABLE log_chunks (
    source_id      integer NOT NULL,
    first_position text COLLATE "C" NOT NULL,
    last_position  text COLLATE "C" NOT NULL,
    changes        integer NOT NULL,
    bytes          integer NOT NULL,
    datasets       integer[] NOT NULL,
    payload        bytea NOT NULL,
    appended_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source_id, last_position),
    CHECK (first_position <= last_position)
);
ALTER TABLE log_chunks ALTER COLUMN payload SET STORAGE EXTERNAL;
SET LOCAL statement_timeout = 0;
INSERT INTO log_chunks
    SELECT source_id, first_position, last_position, changes, bytes, datasets, payload, appended_at
    FROM log_chunks_by_day;
DROP TABLE log_chunks_by_day, log_parts, log_days, log_totals, log_protections;
ALTER TABLE log_ends
    DROP COLUMN day,
    DROP COLUMN chain,
    DROP COLUMN changes,
    DROP COLUMN committed_upto,
    DROP COLUMN trimmed_chain,
    DROP COLUMN trimmed_committed,
    DROP COLUMN trimmed_reason;
