-- Datasets and sources that are no longer governed. Their history stays, and they may come back.

-- A source that is leaving has no datasets and is not captured; what stands of Cadastre in it is
-- being taken away. One that has left is shown nowhere.
ALTER TABLE sources ADD COLUMN state text NOT NULL DEFAULT 'governed'
    CHECK (state IN ('governed', 'leaving', 'left'));

-- A released dataset has no present owner: `owned` is null, so that the foreign key to the present
-- period does not count.
ALTER TABLE datasets ADD COLUMN released_at timestamptz;
ALTER TABLE datasets ALTER COLUMN owned DROP NOT NULL;
ALTER TABLE datasets ADD CONSTRAINT datasets_owned_or_released
    CHECK ((owned IS NULL) = (released_at IS NOT NULL));
