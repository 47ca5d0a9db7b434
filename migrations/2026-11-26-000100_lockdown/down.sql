UPDATE datasets SET mode = 'enforce' WHERE mode = 'lockdown';
ALTER TABLE datasets
    DROP CONSTRAINT datasets_mode_check,
    ADD CONSTRAINT datasets_mode_check CHECK (mode IN ('observe', 'enforce'));
