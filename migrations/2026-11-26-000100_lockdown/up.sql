-- A third mode, in which others have not even the privilege to write.
ALTER TABLE datasets
    DROP CONSTRAINT datasets_mode_check,
    ADD CONSTRAINT datasets_mode_check CHECK (mode IN ('observe', 'enforce', 'lockdown'));
