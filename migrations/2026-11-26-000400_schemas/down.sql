UPDATE datasets SET guard = 'pending' WHERE guard = 'dropped';
ALTER TABLE datasets
    DROP COLUMN dropped_at,
    DROP CONSTRAINT datasets_guard_check,
    ADD CONSTRAINT datasets_guard_check CHECK (guard IN ('pending', 'installed'));
ALTER TABLE sources DROP COLUMN schema_position;
DROP TABLE dataset_couplings;
DROP TABLE unowned_tables;
DROP TABLE dataset_aliases;
DROP TABLE dataset_relations;
DROP TABLE dataset_schemas;
