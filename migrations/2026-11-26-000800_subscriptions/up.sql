-- Subscriptions as they run: how far each has come, what it holds outside the log, what was parked.
-- What is declared of them stays in subscriptions.
--
-- Of the changes at or before its cursor each is, within a run, in exactly one of these places:
--   logged = filtered + delivered + dropped + rows of subscription_held + parked rows of dead_letters

-- cursor and begun are positions. A run begins with the subscription and again with every seek.
-- fence counts the takers of the cursor: who writes with an old one changes nothing. wishes counts
-- what was asked for from outside; a runner that sees it grow reads everything again.
CREATE TABLE subscription_states (
    subscription_id integer PRIMARY KEY REFERENCES subscriptions ON DELETE CASCADE,
    source_id integer NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    run integer NOT NULL DEFAULT 1,
    begun text COLLATE "C" NOT NULL,
    cursor text COLLATE "C" NOT NULL,
    logged bigint NOT NULL DEFAULT 0,
    filtered bigint NOT NULL DEFAULT 0,
    delivered bigint NOT NULL DEFAULT 0,
    dropped bigint NOT NULL DEFAULT 0,
    -- Exclusive or of the fingerprints of all delivered positions.
    checksum bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    wishes bigint NOT NULL DEFAULT 0,
    runner uuid,
    leased_until timestamptz,
    breaker text NOT NULL DEFAULT 'closed' CHECK (breaker IN ('closed', 'open', 'half-open')),
    -- What stands in its way now, for people.
    trouble text,
    delivered_at timestamptz,
    CHECK (begun <= cursor),
    CHECK (logged >= filtered + delivered + dropped)
);

-- Changes at or before the cursor that are neither delivered nor given up: out with a consumer
-- (lease), failed and to be tried again, or behind one of these with the same key. None is handed
-- out before due.
CREATE TABLE subscription_held (
    subscription_id integer NOT NULL REFERENCES subscription_states ON DELETE CASCADE,
    position text COLLATE "C" NOT NULL,
    dataset text NOT NULL,
    op text NOT NULL,
    keys bigint[] NOT NULL,
    payload bytea NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    tried jsonb NOT NULL DEFAULT '[]',
    due timestamptz NOT NULL DEFAULT '-infinity',
    lease uuid,
    -- The dead letter it is redriven from.
    letter_id bigint,
    PRIMARY KEY (subscription_id, position)
);

-- Changes that could not be delivered. None is ever deleted; settled says what became of it.
CREATE TABLE dead_letters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id integer REFERENCES subscriptions ON DELETE SET NULL,
    subscription text NOT NULL,
    run integer NOT NULL,
    position text COLLATE "C" NOT NULL,
    dataset text NOT NULL,
    op text NOT NULL,
    keys bigint[] NOT NULL,
    payload bytea NOT NULL,
    -- What is sent instead, if somebody has mended it.
    edited bytea,
    tried jsonb NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL DEFAULT 'parked'
        CHECK (state IN ('parked', 'redriving', 'delivered', 'dropped', 'expired')),
    settled_at timestamptz,
    settled_by text,
    reason text
);
CREATE INDEX dead_letters_parked ON dead_letters (subscription_id, position) WHERE state = 'parked';
CREATE INDEX dead_letters_listed ON dead_letters (subscription_id, id);

-- Secrets that webhooks are signed with. Two are valid while one replaces the other.
CREATE TABLE subscription_secrets (
    subscription_id integer NOT NULL REFERENCES subscriptions ON DELETE CASCADE,
    secret bytea NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    valid_until timestamptz,
    PRIMARY KEY (subscription_id, secret)
);
