-- A subscription may begin with the rows as they are. While rows are still to come, snapshot says
-- where in the snapshot to go on ('snapshot' is its beginning), and what it gives is held; the cursor
-- is how far the log was read with it. One replica reads it, until its claim ends.
--
-- paid_until: when what consumers were handed is within the subscription's budget.
ALTER TABLE subscription_states
    ADD COLUMN snapshot text,
    ADD COLUMN snapshot_reader uuid,
    ADD COLUMN snapshot_until timestamptz,
    ADD COLUMN paid_until timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00';
