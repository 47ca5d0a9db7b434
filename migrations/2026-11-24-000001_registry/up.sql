-- Services, sources, datasets with exactly one owner, and the record of violations.

-- One row. Its lock makes registry writers take turns; its number tells readers what they have seen.
CREATE TABLE registry_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision bigint NOT NULL
);
INSERT INTO registry_state (revision) VALUES (0);

CREATE TABLE services (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    team text,
    contact text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sources (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    -- As declared: references to environment variables are not resolved, passwords not stored.
    url text NOT NULL,
    epoch smallint NOT NULL DEFAULT 1 CHECK (epoch BETWEEN 0 AND 255),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A role writes for one service.
CREATE TABLE service_roles (
    source_id integer NOT NULL REFERENCES sources,
    role text NOT NULL,
    service_id integer NOT NULL REFERENCES services,
    PRIMARY KEY (source_id, role)
);
CREATE INDEX service_roles_service ON service_roles (service_id);

CREATE TABLE datasets (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id integer NOT NULL REFERENCES sources,
    schema_name text NOT NULL,
    table_name text NOT NULL,
    owner_id integer NOT NULL REFERENCES services,
    mode text NOT NULL CHECK (mode IN ('observe', 'enforce')),
    description text,
    tags text[] NOT NULL DEFAULT '{}',
    columns jsonb NOT NULL DEFAULT '{}',
    derived_from text[] NOT NULL DEFAULT '{}',
    guard text NOT NULL DEFAULT 'pending' CHECK (guard IN ('pending', 'installed')),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Only there to be one end of the foreign key below.
    owned boolean NOT NULL DEFAULT true CHECK (owned),
    UNIQUE (source_id, schema_name, table_name)
);
CREATE INDEX datasets_owner ON datasets (owner_id);

-- Who owned what, when. A period is begun and ended, never changed otherwise.
CREATE TABLE ownership_periods (
    dataset_id integer NOT NULL REFERENCES datasets,
    service_id integer NOT NULL REFERENCES services,
    during tstzrange NOT NULL
        CHECK (NOT isempty(during) AND lower_inc(during) AND upper(during) IS DISTINCT FROM 'infinity'),
    -- True while the period lasts, else null; nulls do not collide in the unique constraint.
    present boolean GENERATED ALWAYS AS (CASE WHEN upper_inf(during) THEN true END) STORED,
    -- The dataset as a range of one number needs no extension for the equality.
    CONSTRAINT ownership_periods_one_owner_at_a_time
        EXCLUDE USING gist (int4range(dataset_id, dataset_id, '[]') WITH &&, during WITH &&),
    CONSTRAINT ownership_periods_present UNIQUE (dataset_id, service_id, present)
);
CREATE INDEX ownership_periods_service ON ownership_periods (service_id);

-- The owner of a dataset is the service of its present period: at commit there is one, and by the
-- exclusion constraint there cannot be another.
ALTER TABLE datasets ADD CONSTRAINT datasets_owner_is_present
    FOREIGN KEY (id, owner_id, owned) REFERENCES ownership_periods (dataset_id, service_id, present)
    DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE violations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id integer NOT NULL REFERENCES sources,
    epoch smallint NOT NULL,
    lsn bigint NOT NULL,
    at timestamptz NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('observed', 'rejected', 'privileged')),
    operation text NOT NULL,
    dataset text NOT NULL,
    service text,
    role text NOT NULL,
    login text NOT NULL,
    application text,
    client text,
    traceparent text,
    -- A message of the guard that is read twice is recorded once.
    UNIQUE (source_id, epoch, lsn)
);
CREATE INDEX violations_dataset ON violations (dataset, id);
CREATE INDEX violations_by_service ON violations (service, id);

CREATE TABLE subscriptions (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    service_id integer NOT NULL REFERENCES services,
    datasets text[] NOT NULL,
    spec jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX subscriptions_service ON subscriptions (service_id);
