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
CREATE OR REPLACE FUNCTION cadastre.guard() RETURNS trigger LANGUAGE plpgsql AS $$
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
ALTER FUNCTION cadastre.guard() OWNER TO cadastre;
-- Needed to create a trigger with it, not to run one.
REVOKE EXECUTE ON FUNCTION cadastre.guard() FROM PUBLIC;

-- The guard of definitions: one governed table at a time, so that trouble with one never blocks
-- commands on another.
CREATE OR REPLACE FUNCTION cadastre.ddl_guard() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  c     record;
  rel   oid;
  noted bool;
BEGIN
  IF TG_EVENT = 'sql_drop' THEN
    FOR c IN
      SELECT DISTINCT d.relid, x.object_identity
      FROM pg_event_trigger_dropped_objects() x
      JOIN cadastre.dataset d ON d.relid = CASE
        WHEN x.classid = 'pg_class'::regclass AND x.object_type IN ('table', 'table column', 'foreign table')
          THEN x.objid
        WHEN x.object_type IN ('trigger', 'rule', 'policy', 'table constraint')
          THEN to_regclass(format('%I.%I', x.address_names[1], x.address_names[2]))
        END
      WHERE NOT x.is_temporary
    LOOP
      noted := cadastre.note_ddl(c.relid, TG_TAG, c.object_identity, current_user);
    END LOOP;
    RETURN;
  END IF;
  IF TG_TAG IN ('GRANT', 'REVOKE') THEN
    -- The event does not name the table: it is one whose catalog row this transaction wrote.
    FOR c IN
      SELECT d.relid, d.relid::regclass::text AS object_identity
      FROM cadastre.dataset d JOIN pg_class k ON k.oid = d.relid
      WHERE age(k.xmin) <= 0
         OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = k.oid AND a.attacl IS NOT NULL AND age(a.xmin) <= 0)
    LOOP
      noted := cadastre.note_ddl(c.relid, TG_TAG, c.object_identity, current_user);
    END LOOP;
    RETURN;
  END IF;
  FOR c IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
    CONTINUE WHEN c.schema_name = 'pg_temp';
    rel := CASE c.classid
      WHEN 'pg_class'::regclass THEN coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = c.objid), c.objid)
      WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = c.objid)
      WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = c.objid)
      WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = c.objid)
      WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid = c.objid)
      WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = c.objid)
    END;
    noted := cadastre.note_ddl(rel, c.command_tag, c.object_identity, current_user);
    -- ATTACH PARTITION and INHERIT name only the parent.
    FOR rel IN SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.objid AND age(i.xmin) <= 0 LOOP
      noted := cadastre.note_ddl(rel, c.command_tag, c.object_identity, current_user);
    END LOOP;
  END LOOP;
END $$;
ALTER FUNCTION cadastre.ddl_guard() OWNER TO cadastre;

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_ddl') THEN
    CREATE EVENT TRIGGER cadastre_ddl ON ddl_command_end EXECUTE FUNCTION cadastre.ddl_guard();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_drop') THEN
    CREATE EVENT TRIGGER cadastre_drop ON sql_drop EXECUTE FUNCTION cadastre.ddl_guard();
  END IF;
  ALTER EVENT TRIGGER cadastre_ddl ENABLE ALWAYS;
  ALTER EVENT TRIGGER cadastre_drop ENABLE ALWAYS;
END $$;
