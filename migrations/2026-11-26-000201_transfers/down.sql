DROP TABLE ownership_switches;
ALTER TABLE ownership_periods DROP COLUMN reason, DROP COLUMN actor, DROP COLUMN transfer_id;
DROP TABLE transfers;
