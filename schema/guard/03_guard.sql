-- The guard of rows. It runs before each statement that writes a governed table, as whoever runs the
-- statement, so that current_user is the writer: through SET ROLE in a pooler, a view, or an API
-- function of the owner (SECURITY DEFINER) alike.
--
-- The first condition is all that the plain owner pays for: it goes on for anyone else, for a
-- superuser, when the session set a trace context, and when something was noted earlier in the same
-- transaction. It stands here and not in the trigger's WHEN clause, because PostgreSQL reads that
-- clause anew for each statement and this function only once for each session. Everything in it is
-- qualified, so that no search_path changes what it means.
--
-- The owner stands in the trigger as a constant: with a lookup in a table, a transaction with an
-- older snapshot could still commit after a hand-over.
--
-- Arguments: dataset, owner, owner's role, mode.
CREATE OR REPLACE FUNCTION cadastre_guard.guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE noted pg_catalog.bool;
BEGIN
  IF pg_catalog.pg_has_role(TG_ARGV[2]::pg_catalog.name, 'USAGE')
     AND NOT pg_catalog.pg_has_role('cadastre_nobody'::pg_catalog.name, 'MEMBER')
     AND (pg_catalog.current_setting('cadastre.traceparent', true) OPERATOR(pg_catalog.<>) '') IS NOT TRUE
     AND (pg_catalog.current_setting('cadastre.marker', true) OPERATOR(pg_catalog.<>) '') IS NOT TRUE
  THEN
    RETURN NULL;
  END IF;
  -- An assignment, not PERFORM: the stack then shows this function directly below.
  noted := cadastre.note(TG_ARGV[0], TG_ARGV[1], TG_ARGV[2]::pg_catalog.name, TG_ARGV[3], TG_OP,
                         TG_TABLE_SCHEMA, TG_TABLE_NAME, current_user);
  RETURN NULL;
END $$;
ALTER FUNCTION cadastre_guard.guard() OWNER TO cadastre;

-- The same before each row, where a subscription applies rows without statements: once for each
-- transaction is enough there.
CREATE OR REPLACE FUNCTION cadastre_guard.guard_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE noted pg_catalog.bool;
BEGIN
  IF (NOT pg_catalog.pg_has_role(TG_ARGV[2]::pg_catalog.name, 'USAGE')
      OR pg_catalog.pg_has_role('cadastre_nobody'::pg_catalog.name, 'MEMBER'))
     AND (pg_catalog.strpos(pg_catalog.current_setting('cadastre.marker', true),
       pg_catalog.concat('|', current_user, ':', pg_catalog.pg_current_xact_id(), ':', TG_ARGV[0], ':'))
       OPERATOR(pg_catalog.>) 0) IS NOT TRUE
  THEN
    noted := cadastre.note(TG_ARGV[0], TG_ARGV[1], TG_ARGV[2]::pg_catalog.name, TG_ARGV[3], TG_OP,
                           TG_TABLE_SCHEMA, TG_TABLE_NAME, current_user);
  END IF;
  IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
    RETURN OLD;
  END IF;
  RETURN NEW;
END $$;
ALTER FUNCTION cadastre_guard.guard_row() OWNER TO cadastre;
-- Needed to create a trigger with them, not to run one.
REVOKE EXECUTE ON FUNCTION cadastre_guard.guard(), cadastre_guard.guard_row() FROM PUBLIC;
