-- Where the guard stands: on a governed table and on each of its partitions and children, because
-- triggers of statements are not inherited. A part that comes to a governed table gets it in the
-- transaction that makes or attaches it; one that is detached keeps it until it is somebody's.
--
--   _cadastre_guard  before each statement, whatever session_replication_role says
--   _cadastre_apply  before each row, and only where session_replication_role is replica: a
--                    subscription applies rows without statements. On tables that one applies rows to
--                    alone, because COPY is slower with such a trigger even where it does not fire;
--                    and not on a partitioned table: its owner could attach no partition, which would
--                    get a copy, without the right to use the guard's function.

-- Puts the guard on one table.
CREATE OR REPLACE FUNCTION cadastre.place(part oid, dataset text, owner text, owner_role name, mode text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  arguments text := format('%L, %L, %L, %L', dataset, owner, owner_role, mode);
  tab       record;
BEGIN
  SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind INTO STRICT tab
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = part;
  EXECUTE format('CREATE OR REPLACE TRIGGER _cadastre_guard BEFORE INSERT OR UPDATE OR DELETE%s ON %s '
    'FOR EACH STATEMENT EXECUTE FUNCTION cadastre_guard.guard(%s)',
    CASE tab.relkind WHEN 'f' THEN '' ELSE ' OR TRUNCATE' END, tab.name, arguments);
  -- Replacing a trigger enables it as usual: always is said again.
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER _cadastre_guard', tab.name);
  IF cadastre.subscribed(part) THEN
    EXECUTE format('CREATE OR REPLACE TRIGGER _cadastre_apply BEFORE INSERT OR UPDATE OR DELETE ON %s '
      'FOR EACH ROW EXECUTE FUNCTION cadastre_guard.guard_row(%s)', tab.name, arguments);
    EXECUTE format('ALTER TABLE %s ENABLE REPLICA TRIGGER _cadastre_apply', tab.name);
  END IF;
END $$;
ALTER FUNCTION cadastre.place(oid, text, text, name, text) OWNER TO cadastre;
REVOKE EXECUTE ON FUNCTION cadastre.place(oid, text, text, name, text) FROM PUBLIC;

-- Whether the guard stands on a table as a dataset has it.
CREATE OR REPLACE FUNCTION cadastre.stands(part oid, root oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  -- What pg_trigger.tgargs holds: each argument followed by a zero byte.
  WITH wanted (arguments) AS (
    SELECT string_agg(convert_to(a, getdatabaseencoding()) || decode('00', 'hex'), ''::bytea ORDER BY n)
    FROM cadastre.dataset d, unnest(ARRAY[d.name, d.owner, d.owner_role, d.mode]) WITH ORDINALITY AS x (a, n)
    WHERE d.relid = root)
  SELECT count(*) = CASE WHEN cadastre.subscribed(part) THEN 2 ELSE 1 END
  FROM pg_trigger t CROSS JOIN wanted
  WHERE t.tgrelid = part AND t.tgqual IS NULL AND t.tgargs = wanted.arguments
    AND (t.tgname = '_cadastre_guard' AND t.tgenabled = 'A' AND t.tgfoid = cadastre.trigger_function()
         OR t.tgname = '_cadastre_apply' AND t.tgenabled = 'R' AND cadastre.subscribed(part))
$$;
ALTER FUNCTION cadastre.stands(oid, oid) OWNER TO cadastre;

-- Puts the guard on a part that comes to a dataset, with the rights of whoever installs guards: the part's own
-- maker may not use the guard's function, so that nobody can put it to another use.
CREATE OR REPLACE FUNCTION cadastre.guard_part(part oid, root oid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack text;
  d     cadastre.dataset;
  ours  boolean;
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  PERFORM cadastre.called_by(stack, 'cadastre.guard_parts');
  SELECT * INTO STRICT d FROM cadastre.dataset WHERE relid = root;
  -- These commands are not an attempt.
  INSERT INTO cadastre.installing VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
  ours := FOUND;
  IF cadastre.stands(part, root) IS NOT TRUE THEN
    BEGIN
      PERFORM cadastre.place(part, d.name, d.owner, d.owner_role, d.mode);
    EXCEPTION WHEN insufficient_privilege THEN
      -- Cadastre's role is no member of the part's owner. The command may be nonetheless, but nobody
      -- vouches for writers from here on; the next comparison says what is missing.
      PERFORM cadastre.emit(true, 'guard', json_build_object('v', 1, 'dataset', d.name, 'state', 'off'));
    END;
  END IF;
  IF d.mode = 'lockdown' THEN
    BEGIN
      PERFORM cadastre.take(root, part);
    EXCEPTION WHEN insufficient_privilege THEN
      -- Somebody passed privileges on, which only they can take back: left to the next comparison.
      NULL;
    END;
  END IF;
  IF ours THEN
    DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id();
  END IF;
  RETURN true;
END $$;
ALTER FUNCTION cadastre.guard_part(oid, oid) OWNER TO CURRENT_USER;

-- Before PostgreSQL 15 a stream goes on publishing a table as it began to, or not at all, whatever table
-- it has become a part of since; until its publication is changed. So it is, to what it is, by one
-- transaction at a time, with the rights of whoever installs guards.
CREATE OR REPLACE FUNCTION cadastre.publish_anew(root oid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack       text;
  publication name := (SELECT concat('cadastre_', split_part(name, '.', 1)) FROM cadastre.dataset WHERE relid = root);
  ours        boolean;
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  PERFORM cadastre.called_by(stack, 'cadastre.guard_parts');
  IF EXISTS (SELECT FROM pg_publication WHERE pubname = publication) THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('cadastre publication', 0));
    INSERT INTO cadastre.installing VALUES (pg_current_xact_id()) ON CONFLICT DO NOTHING;
    ours := FOUND;
    EXECUTE format('ALTER PUBLICATION %I SET (publish_via_partition_root = true)', publication);
    IF ours THEN
      DELETE FROM cadastre.installing WHERE xid = pg_current_xact_id();
    END IF;
  END IF;
  RETURN true;
END $$;
ALTER FUNCTION cadastre.publish_anew(oid) OWNER TO CURRENT_USER;

-- After each command that may make or attach a part, or subscribe a table to rows of elsewhere. It runs after cadastre_ddl, by name, which has
-- the word on whether the command may be.
CREATE OR REPLACE FUNCTION cadastre.guard_parts() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  part   record;
  placed bool;
BEGIN
  -- Of what is done here nothing needs to be done again.
  IF EXISTS (SELECT FROM cadastre.installing WHERE xid = pg_current_xact_id_if_assigned()) THEN
    RETURN;
  END IF;
  FOR part IN
    WITH RECURSIVE touched (oid) AS (
      SELECT c.objid FROM pg_event_trigger_ddl_commands() c
      WHERE c.classid = 'pg_class'::regclass AND c.object_type IN ('table', 'foreign table')
      UNION
      SELECT i.inhrelid FROM pg_inherits i JOIN touched ON i.inhparent = touched.oid
    ), subscribed (oid) AS (
      SELECT s.srrelid FROM pg_subscription_rel s WHERE TG_TAG IN ('CREATE SUBSCRIPTION', 'ALTER SUBSCRIPTION')
      UNION
      SELECT i.inhrelid FROM pg_inherits i JOIN subscribed ON i.inhparent = subscribed.oid
    ), part AS (
      SELECT c.oid, cadastre.dataset_of(c.oid) AS root, bool_or(age(i.xmin) <= 0) AS fresh
      FROM touched JOIN pg_class c USING (oid) JOIN pg_inherits i ON i.inhrelid = c.oid
      WHERE c.relpersistence <> 't' AND cadastre.dataset_of(c.oid) <> c.oid
      GROUP BY c.oid
      UNION
      SELECT s.oid, cadastre.dataset_of(s.oid), false FROM subscribed s)
    -- One that comes back may still have a guard, of another time.
    SELECT p.oid, p.root FROM part p
    WHERE p.root IS NOT NULL AND (p.fresh OR cadastre.stands(p.oid, p.root) IS NOT TRUE)
    ORDER BY p.oid
  LOOP
    -- An assignment, not PERFORM: the stack then shows this function directly below.
    placed := cadastre.guard_part(part.oid, part.root);
  END LOOP;
  IF TG_TAG = 'ALTER TABLE' AND current_setting('server_version_num')::int < 150000 THEN
    FOR part IN
      SELECT DISTINCT cadastre.dataset_of(c.oid) AS root FROM pg_event_trigger_ddl_commands() e
      JOIN pg_class c ON c.oid = e.objid AND e.classid = 'pg_class'::regclass AND c.relkind = 'p'
      WHERE cadastre.dataset_of(c.oid) IS NOT NULL
    LOOP
      placed := cadastre.publish_anew(part.root);
    END LOOP;
  END IF;
END $$;
ALTER FUNCTION cadastre.guard_parts() OWNER TO cadastre;

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_parts') THEN
    CREATE EVENT TRIGGER cadastre_parts ON ddl_command_end EXECUTE FUNCTION cadastre.guard_parts();
  END IF;
  IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_parts' AND evtenabled <> 'A') THEN
    ALTER EVENT TRIGGER cadastre_parts ENABLE ALWAYS;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$;
