ALTER TABLE subscription_states
    DROP COLUMN paid_until,
    DROP COLUMN snapshot_until,
    DROP COLUMN snapshot_reader,
    DROP COLUMN snapshot;
