-- A service that is no more: it keeps its name and its history, and owns and reads nothing.
ALTER TABLE services
    ADD COLUMN retired_at timestamptz,
    ADD COLUMN retired_by text,
    ADD CHECK ((retired_at IS NULL) = (retired_by IS NULL));

-- Permission for one service to write one dataset of another for a time. The guard holds it in the
-- source and ends it there by itself; this is the record of it.
CREATE TABLE break_glass (
    id uuid PRIMARY KEY,
    dataset_id integer NOT NULL REFERENCES datasets,
    service_id integer NOT NULL REFERENCES services,
    reason text NOT NULL,
    granted_by text NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
        CHECK (expires_at > granted_at AND expires_at <= granted_at + interval '24 hours 5 minutes'),
    revoked_at timestamptz,
    revoked_by text,
    CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
CREATE INDEX break_glass_dataset ON break_glass (dataset_id, granted_at);
CREATE INDEX break_glass_service ON break_glass (service_id);

ALTER TABLE violations DROP CONSTRAINT violations_verdict_check;
ALTER TABLE violations ADD CONSTRAINT violations_verdict_check
    CHECK (verdict IN ('observed', 'rejected', 'privileged', 'break_glass'));
