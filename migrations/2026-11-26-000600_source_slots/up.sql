-- What is known of each source's slot and cluster, so that a slot or a database that is not the one
-- captured before is told from one that is.
CREATE TABLE source_slots (
    source_id integer PRIMARY KEY REFERENCES sources ON DELETE CASCADE,
    -- Of the cluster, given by initdb: 64 bits without a sign, as text.
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    -- All that committed before this LSN has been handled. Written down before it is confirmed to
    -- the slot, so that a slot confirmed further was confirmed by somebody else.
    confirmed bigint NOT NULL,
    -- The last heartbeat before that: a stream that goes on repeats it if it begins before it.
    heartbeat_lsn bigint,
    heartbeat_id text,
    -- Why continuity ended, until that stands in the log.
    broken text,
    CHECK ((heartbeat_lsn IS NULL) = (heartbeat_id IS NULL))
);
