-- Roles, schema and tables that the guard stands on, in each source. Run as superuser; idempotent.
--
--   cadastre         owns everything here; nobody logs in as it
--   cadastre_nobody  has no members, so that membership of it shows a superuser, who passes
--                    every test of roles
--
-- Row changes here are made by Cadastre alone; anyone may read which table is whose.

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cadastre') THEN
    CREATE ROLE cadastre NOLOGIN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cadastre_nobody') THEN
    CREATE ROLE cadastre_nobody NOLOGIN;
  END IF;
EXCEPTION
  -- Another source of the same cluster is being set up at the same time.
  WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

CREATE SCHEMA IF NOT EXISTS cadastre AUTHORIZATION cadastre;
GRANT USAGE ON SCHEMA cadastre TO PUBLIC;

-- What is governed here: written in the transaction that installs the guard.
CREATE TABLE IF NOT EXISTS cadastre.dataset (
  relid      oid PRIMARY KEY,
  name       text NOT NULL,
  owner      text NOT NULL,
  owner_role name NOT NULL,
  mode       text NOT NULL CHECK (mode IN ('observe', 'enforce'))
);
ALTER TABLE cadastre.dataset OWNER TO cadastre;
GRANT SELECT ON cadastre.dataset TO PUBLIC;

-- Transactions that install or repair guards: their DDL is not an attempt. Each removes its row
-- before it commits, and only superusers and cadastre can write one.
CREATE TABLE IF NOT EXISTS cadastre.installing (xid xid8 PRIMARY KEY);
ALTER TABLE cadastre.installing OWNER TO cadastre;
GRANT SELECT ON cadastre.installing TO PUBLIC;

-- Whoever can emit logical messages could put words into the guard's mouth.
DO $$
DECLARE f regprocedure;
BEGIN
  FOR f IN SELECT oid FROM pg_catalog.pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO cadastre', f);
  END LOOP;
END $$;
