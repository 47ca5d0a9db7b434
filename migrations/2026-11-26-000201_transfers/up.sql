-- Datasets passing from one service to another: proposed, decided, and where in the stream of changes
-- the new owner begins.

CREATE TABLE transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset_id integer NOT NULL REFERENCES datasets,
    from_id integer NOT NULL REFERENCES services,
    to_id integer NOT NULL REFERENCES services CHECK (to_id <> from_id),
    reason text NOT NULL,
    proposed_by text NOT NULL,
    proposed_at timestamptz NOT NULL DEFAULT now(),
    -- Until then it may be accepted. What is proposed and past it has expired.
    expires_at timestamptz NOT NULL CHECK (expires_at > proposed_at),
    state text NOT NULL DEFAULT 'proposed'
        CHECK (state IN ('proposed', 'completed', 'declined', 'cancelled', 'expired')),
    decided_by text,
    decided_at timestamptz,
    CHECK ((decided_at IS NULL) = (state = 'proposed'))
);
-- One proposal at a time for a dataset.
CREATE UNIQUE INDEX transfers_proposed ON transfers (dataset_id) WHERE state = 'proposed';
CREATE INDEX transfers_dataset ON transfers (dataset_id, id);
CREATE INDEX transfers_from ON transfers (from_id, id);
CREATE INDEX transfers_to ON transfers (to_id, id);

-- Why a period began, and who had it begin.
ALTER TABLE ownership_periods
    ADD COLUMN reason text,
    ADD COLUMN actor text,
    ADD COLUMN transfer_id bigint UNIQUE REFERENCES transfers;

-- Where in a source's stream an owner or a mode begins, as its own messages say. A change without
-- a message of the guard was written by the owner of its place in the stream, which is not
-- always the registry's present one.
CREATE TABLE ownership_switches (
    dataset_id integer NOT NULL REFERENCES datasets,
    position text COLLATE "C" NOT NULL,
    owner_before text,
    owner text NOT NULL,
    mode_before text,
    mode text NOT NULL,
    transfer_id bigint,
    PRIMARY KEY (dataset_id, position)
);
