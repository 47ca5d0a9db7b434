-- The log: encoded changes of each source in compressed chunks. Positions are fixed-width
-- hexadecimal text, so that with COLLATE "C" their text sorts as they do.

-- Where each source's log ends and what it has lost at its beginning. Every append moves
-- last_position forward under a guard; that row serializes writers, and keeps the order even when
-- all chunks have been trimmed.
CREATE TABLE log_ends (
    source_id     integer PRIMARY KEY,
    last_position text COLLATE "C" NOT NULL,
    trimmed_upto  text COLLATE "C" NOT NULL,
    CHECK (trimmed_upto <= last_position)
);

-- bytes is the size before compression; datasets lists, sorted, whose changes the chunk has, so
-- that a reader of others skips it without touching its payload.
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

-- Already compressed: do not try again, and let it be read in parts.
ALTER TABLE log_chunks ALTER COLUMN payload SET STORAGE EXTERNAL;
