-- What was released has no place in the older tables; its history goes with it.
DELETE FROM guard_gaps WHERE dataset_id IN (SELECT id FROM datasets WHERE released_at IS NOT NULL);
DELETE FROM ownership_periods WHERE dataset_id IN (SELECT id FROM datasets WHERE released_at IS NOT NULL);
DELETE FROM datasets WHERE released_at IS NOT NULL;
ALTER TABLE datasets DROP CONSTRAINT datasets_owned_or_released;
ALTER TABLE datasets ALTER COLUMN owned SET NOT NULL;
ALTER TABLE datasets DROP COLUMN released_at;
ALTER TABLE sources DROP COLUMN state;
