-- API tokens. The secret itself is shown once, to whoever had it made, and kept nowhere.
CREATE TABLE tokens (
    -- The order in which they were made.
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The part of the token that may be seen: it names the token in lists and log lines.
    id text COLLATE "C" NOT NULL UNIQUE,
    -- SHA-256 of the whole token, which is long and random: nothing slower is needed.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    role text NOT NULL CHECK (role IN ('admin', 'auditor', 'service')),
    service_id integer REFERENCES services,
    description text,
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    -- Written now and then, not with each request.
    last_used_at timestamptz,
    CHECK ((role = 'service') = (service_id IS NOT NULL))
);
CREATE INDEX tokens_service ON tokens (service_id, number);
