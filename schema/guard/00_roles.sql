-- The roles that the guard stands on: of the whole cluster, so they are made, and committed, before
-- anything else. Idempotent.
--
--   cadastre         owns everything of the guard; nobody logs in as it. Where the role that Cadastre
--                    connects as is no superuser, it is a member
--   cadastre_nobody  has no members, so that membership of it shows a superuser, who passes
--                    every test of roles
--
-- Another source of the same cluster may be set up at the same time.

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cadastre') THEN
    CREATE ROLE cadastre NOLOGIN;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'cadastre_nobody') THEN
    CREATE ROLE cadastre_nobody NOLOGIN;
  END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
