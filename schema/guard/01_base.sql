-- Schemas and tables that the guard stands on, in each source. Run as a superuser or as a member of
-- cadastre; idempotent.
--
-- Row changes here are made by Cadastre alone; anyone may read which table is whose.

CREATE SCHEMA IF NOT EXISTS cadastre AUTHORIZATION cadastre;
GRANT USAGE ON SCHEMA cadastre TO PUBLIC;
-- Holds the trigger's function alone. It can be in nobody's search_path, so that the call stack names
-- the function in full, whatever a session has set: see called_by() in 02_note.sql.
CREATE SCHEMA IF NOT EXISTS cadastre_guard AUTHORIZATION cadastre;
REVOKE ALL ON SCHEMA cadastre_guard FROM PUBLIC;

-- What is governed here: written in the transaction that installs the guard.
CREATE TABLE IF NOT EXISTS cadastre.dataset (
  relid      oid PRIMARY KEY,
  name       text NOT NULL,
  owner      text NOT NULL,
  owner_role name NOT NULL,
  mode       text NOT NULL
);
ALTER TABLE cadastre.dataset
  DROP CONSTRAINT IF EXISTS dataset_mode_check,
  ADD CONSTRAINT dataset_mode_check CHECK (mode IN ('observe', 'enforce', 'lockdown'));
ALTER TABLE cadastre.dataset OWNER TO cadastre;
GRANT SELECT ON cadastre.dataset TO PUBLIC;

-- The group roles that stand for services here, by OID: a name alone is easily imitated.
CREATE TABLE IF NOT EXISTS cadastre.service (
  group_role oid PRIMARY KEY,
  name       text NOT NULL
);
ALTER TABLE cadastre.service OWNER TO cadastre;
GRANT SELECT ON cadastre.service TO PUBLIC;

-- Who may write another's dataset for a time. The guard looks here only when somebody writes who is
-- not the owner, and goes by this database's clock: a permission ends by itself.
CREATE TABLE IF NOT EXISTS cadastre.break_glass (
  id         text PRIMARY KEY,
  dataset    text NOT NULL,
  service    text NOT NULL,
  reason     text NOT NULL,
  expires_at timestamptz NOT NULL
);
ALTER TABLE cadastre.break_glass OWNER TO cadastre;

-- Transactions that install or repair guards: their DDL is not an attempt. Each removes its row
-- before it commits, and only superusers and cadastre can write one.
CREATE TABLE IF NOT EXISTS cadastre.installing (xid xid8 PRIMARY KEY);
ALTER TABLE cadastre.installing OWNER TO cadastre;
GRANT SELECT ON cadastre.installing TO PUBLIC;

-- What anybody could do before, and can again once all this is uninstalled.
CREATE TABLE IF NOT EXISTS cadastre.taken (function text PRIMARY KEY);
ALTER TABLE cadastre.taken OWNER TO cadastre;

-- Whoever can emit logical messages could put words into the guard's mouth. Only a superuser can take
-- that from everybody; where none did, it is a finding.
DO $$
DECLARE f record;
BEGIN
  FOR f IN
    SELECT p.oid::regprocedure AS name, EXISTS (
        SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0) AS open
    FROM pg_catalog.pg_proc p
    WHERE p.proname = 'pg_logical_emit_message' AND p.pronamespace = 'pg_catalog'::regnamespace
      AND pg_has_role(p.proowner, 'USAGE')
  LOOP
    IF f.open THEN
      INSERT INTO cadastre.taken VALUES (f.name::text) ON CONFLICT DO NOTHING;
    END IF;
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO cadastre', f.name);
  END LOOP;
END $$;
