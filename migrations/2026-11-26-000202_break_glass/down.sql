DELETE FROM violations WHERE verdict = 'break_glass';
ALTER TABLE violations DROP CONSTRAINT violations_verdict_check;
ALTER TABLE violations ADD CONSTRAINT violations_verdict_check
    CHECK (verdict IN ('observed', 'rejected', 'privileged'));
DROP TABLE break_glass;
ALTER TABLE services DROP COLUMN retired_at, DROP COLUMN retired_by;
