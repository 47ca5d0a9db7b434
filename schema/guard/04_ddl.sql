-- The guard of definitions. It runs after each command that defines something (ddl_command_end) and
-- after what a command dropped (sql_drop), as whoever runs the command.
--
-- ddl_guard is STABLE on purpose: its queries then see the catalog as it was before the command,
-- where a dropped index still has its table, a renamed table its old name, and a detached partition
-- its parent. What it calls to see the catalog as it is now is VOLATILE. So each table that a
-- command may concern is known as it was and as it is, whatever the command was called:
--
--   touched()      which governed tables an object belongs to          before and after
--   state()        what a governed table, its parts and its guard are  before and after
--   note_ddl()     one governed table at a time: whose is it, may this be, what has changed; so that
--                  trouble with one never blocks a command on another
--
-- Not seen, because PostgreSQL has no event for them: REASSIGN OWNED (who is the table's owner for
-- PostgreSQL gives nobody a way past the guard), CLUSTER and, before 17, REINDEX (neither changes what
-- the table is). The table of an index that is dropped CONCURRENTLY is not known any more.
--
-- What changed is said in the stream, in order with the rows, by one transactional message each:
--
--   cadastre.schema  {"v","kind","dataset","relid","schema","table","command","service","role",
--                     "login"} and by kind
--     installed      "shape": the guard was installed on the table
--     altered, renamed, moved   "shape", "was": {"schema","table"}
--     dropped        "was"
--     attached, detached        "part": {"relid","schema","table"}: rows came or went with a part
--     coupled, uncoupled        "constraint", "from": {"schema","table"}: a foreign key of another
--                               service's table to this one; it lets that service hold up deletes
--     created, gone  "dataset" is null: a table that nobody has registered
--
-- A shape is {"schema","table","columns":[{"name","type","oid","typmod","notNull","position",
-- "generated","identity"}],"key":[…],"replicaIdentity","types":[…]}: "position" is the column's number,
-- which never changes and is never used again, so that a renamed column is told from a new one;
-- "types" are the types that are not built in, followed to what they are made of.

-- Everything a stream needs to know of a table; null when there is none.
CREATE OR REPLACE FUNCTION cadastre.shape(rel oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE columns AS (
    SELECT a.* FROM pg_attribute a WHERE a.attrelid = rel AND a.attnum > 0 AND NOT a.attisdropped
  ), used (oid) AS (
    SELECT atttypid FROM columns
    UNION
    SELECT part.oid FROM used JOIN pg_type t ON t.oid = used.oid CROSS JOIN LATERAL (
      SELECT t.typbasetype WHERE t.typtype = 'd'
      UNION ALL
      SELECT t.typelem WHERE t.typtype = 'b' AND t.typelem <> 0 AND t.typlen = -1
      UNION ALL
      SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
      UNION ALL
      SELECT a.atttypid FROM pg_attribute a
      WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS part (oid)
    WHERE t.typnamespace <> 'pg_catalog'::regnamespace
  )
  SELECT jsonb_build_object(
    'schema', n.nspname,
    'table', c.relname,
    'columns', coalesce((
      SELECT jsonb_agg(jsonb_build_object(
          'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'oid', a.atttypid::bigint,
          'typmod', a.atttypmod, 'notNull', a.attnotnull, 'position', a.attnum,
          'generated', CASE a.attgenerated WHEN 's' THEN 'stored' WHEN 'v' THEN 'virtual' END,
          'identity', CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'default' END)
        ORDER BY a.attnum)
      FROM columns a), '[]'),
    'key', coalesce((
      SELECT jsonb_agg(a.attname ORDER BY k.place)
      FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
      JOIN columns a ON a.attnum = k.attnum
      WHERE i.indrelid = rel AND k.place <= i.indnkeyatts
        AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END), '[]'),
    'replicaIdentity', CASE c.relreplident WHEN 'd' THEN 'default' WHEN 'i' THEN 'index'
                                           WHEN 'f' THEN 'full' ELSE 'nothing' END,
    'types', coalesce((
      SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
          'oid', t.oid::bigint, 'schema', tn.nspname, 'name', t.typname,
          'kind', CASE WHEN t.typtype = 'd' THEN 'domain' WHEN t.typtype = 'c' THEN 'composite'
                       WHEN t.typtype = 'r' THEN 'range' WHEN t.typtype = 'm' THEN 'multirange'
                       WHEN t.typtype = 'e' THEN 'enum'
                       WHEN t.typtype = 'b' AND t.typelem <> 0 AND t.typlen = -1
                            AND t.typoutput = 'array_out'::regproc THEN 'array'
                       ELSE 'base' END,
          'of', CASE t.typtype
                  WHEN 'd' THEN t.typbasetype::bigint
                  WHEN 'r' THEN (SELECT r.rngsubtype::bigint FROM pg_range r WHERE r.rngtypid = t.oid)
                  WHEN 'm' THEN (SELECT r.rngsubtype::bigint FROM pg_range r WHERE r.rngmultitypid = t.oid)
                  WHEN 'b' THEN nullif(t.typelem::bigint, 0) END,
          'delimiter', (SELECT e.typdelim FROM pg_type e WHERE e.oid = t.typelem),
          'notNull', nullif(t.typnotnull, false),
          'constraints', (SELECT jsonb_agg(k.conname ORDER BY k.conname) FROM pg_constraint k WHERE k.contypid = t.oid),
          'values', (SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
          'attributes', (SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'oid', a.atttypid::bigint) ORDER BY a.attnum)
                         FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
                           AND a.attnum > 0 AND NOT a.attisdropped)))
        ORDER BY t.oid)
      FROM used JOIN pg_type t USING (oid) JOIN pg_namespace tn ON tn.oid = t.typnamespace
      WHERE t.typnamespace <> 'pg_catalog'::regnamespace), '[]'))
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = rel
$$;

-- The governed table that a table is, or is part of; null for none.
CREATE OR REPLACE FUNCTION cadastre.dataset_of(rel oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE up (oid, depth) AS (
    SELECT rel, 0
    UNION ALL
    SELECT i.inhparent, up.depth + 1 FROM pg_inherits i JOIN up ON i.inhrelid = up.oid)
  SELECT d.relid FROM up JOIN cadastre.dataset d ON d.relid = up.oid ORDER BY up.depth LIMIT 1
$$;

-- The table that an object belongs to; null for none.
CREATE OR REPLACE FUNCTION cadastre.table_of(class oid, object oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE class
    WHEN 'pg_class'::regclass THEN coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = object), object)
    -- Internal triggers belong to a foreign key, which is reported itself.
    WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = object AND NOT tgisinternal)
    WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = object)
    WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = object)
    WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid = object)
    WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = object)
    WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = object)
    WHEN 'pg_publication_rel'::regclass THEN (SELECT prrelid FROM pg_publication_rel WHERE oid = object)
  END
$$;

-- The tables whose rows hold values of a type, directly or inside another type.
CREATE OR REPLACE FUNCTION cadastre.tables_using(typ oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE users (class, object) AS (
    SELECT 'pg_type'::regclass::oid, typ
    UNION
    SELECT next.class, next.object FROM users CROSS JOIN LATERAL (
      SELECT d.classid, d.objid FROM pg_depend d
      WHERE users.class = 'pg_type'::regclass AND d.refclassid = 'pg_type'::regclass
        AND d.refobjid = users.object AND d.classid IN ('pg_type'::regclass, 'pg_class'::regclass)
      UNION ALL
      SELECT 'pg_type'::regclass::oid, c.reltype FROM pg_class c
      WHERE users.class = 'pg_class'::regclass AND c.oid = users.object AND c.reltype <> 0
    ) AS next (class, object))
  SELECT object FROM users WHERE class = 'pg_class'::regclass
$$;

-- The governed tables that an object concerns: its own table for certain, others perhaps.
CREATE OR REPLACE FUNCTION cadastre.touched(class oid, object oid, OUT relid oid, OUT certain boolean)
RETURNS SETOF record LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE below (oid) AS (
    SELECT object WHERE class = 'pg_class'::regclass
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN below ON i.inhparent = below.oid)
  SELECT found.relid, bool_or(found.certain) FROM (
    SELECT cadastre.dataset_of(cadastre.table_of(class, object)), true
    UNION ALL
    SELECT cadastre.dataset_of(below.oid), false FROM below
    UNION ALL
    SELECT cadastre.dataset_of(t), false
    FROM cadastre.tables_using(CASE class
      WHEN 'pg_type'::regclass THEN object
      WHEN 'pg_class'::regclass THEN (SELECT reltype FROM pg_class WHERE oid = object) END) AS t
    UNION ALL
    SELECT d.relid, false FROM cadastre.dataset d JOIN pg_class c ON c.oid = d.relid
    WHERE class = 'pg_namespace'::regclass AND c.relnamespace = object
    UNION ALL
    SELECT cadastre.dataset_of(p.prrelid), false FROM pg_publication_rel p
    WHERE class = 'pg_publication'::regclass AND p.prpubid = object
  ) AS found (relid, certain)
  WHERE found.relid IS NOT NULL
  GROUP BY found.relid
$$;

-- The guard's own function, whose name not everyone may look up.
CREATE OR REPLACE FUNCTION cadastre.trigger_function() RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname = 'cadastre_guard' AND p.proname = 'guard'
$$;

-- Whether a subscription applies rows to a table that has some.
CREATE OR REPLACE FUNCTION cadastre.subscribed(rel oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM pg_class c WHERE c.oid = rel AND c.relkind <> 'p')
    AND EXISTS (
      SELECT FROM pg_subscription_rel s WHERE s.srrelid = rel
        OR s.srrelid IN (SELECT a.relid FROM pg_partition_ancestors(rel) a))
$$;

-- A governed table: its shape, its parts with the guard on each, what it is itself a part of, and
-- how it is published to its feed. Null once it is dropped.
CREATE OR REPLACE FUNCTION cadastre.state(rel oid, dataset text) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE tree (oid) AS (
    SELECT rel
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
  SELECT jsonb_build_object(
    'shape', cadastre.shape(rel),
    'parts', (
      SELECT jsonb_object_agg(c.oid, jsonb_build_object('schema', n.nspname, 'table', c.relname,
        'guarded', EXISTS (
          SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_guard'
            AND t.tgenabled = 'A' AND t.tgqual IS NULL AND t.tgfoid = cadastre.trigger_function())
          AND (NOT cadastre.subscribed(c.oid) OR EXISTS (
          SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = '_cadastre_apply'
            AND t.tgenabled = 'R' AND t.tgqual IS NULL))))
      FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace),
    'within', (SELECT jsonb_agg(i.inhparent::bigint ORDER BY i.inhparent) FROM pg_inherits i WHERE i.inhrelid = rel),
    'published', (
      SELECT to_jsonb(r) - ARRAY['oid'] || to_jsonb(p) - ARRAY['oid', 'pubowner']
      FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
      WHERE r.prrelid = rel AND p.pubname = concat('cadastre_', split_part(dataset, '.', 1))))
  FROM pg_class WHERE oid = rel
$$;

-- Who may do what with each governed table and its parts, where any of them is `fresh`: written by
-- this transaction.
CREATE OR REPLACE FUNCTION cadastre.privileges(fresh boolean) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE tree (oid, dataset) AS (
    SELECT relid, relid FROM cadastre.dataset
    UNION
    SELECT i.inhrelid, tree.dataset FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
  SELECT coalesce(jsonb_object_agg(granted.dataset, granted.to_whom), '{}') FROM (
    SELECT tree.dataset, jsonb_agg(jsonb_build_array(c.oid, c.relowner, c.relacl,
      (SELECT jsonb_agg(jsonb_build_array(a.attnum, a.attacl) ORDER BY a.attnum)
       FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)) ORDER BY c.oid) AS to_whom
    FROM tree JOIN pg_class c USING (oid) GROUP BY tree.dataset
    HAVING NOT fresh OR bool_or(age(c.xmin) <= 0 OR EXISTS (
      SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND age(a.xmin) <= 0))) AS granted
$$;

-- The same, as things are now. They are VOLATILE: each of their queries sees what was done just now.
CREATE OR REPLACE FUNCTION cadastre.touched_now(class oid, object oid, OUT relid oid, OUT certain boolean)
RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY SELECT t.relid, t.certain FROM cadastre.touched(class, object) t;
END $$;
CREATE OR REPLACE FUNCTION cadastre.privileges_now() RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN cadastre.privileges(true);
END $$;

-- What one command did to one governed table: rejected, or let through and said in the stream.
-- `was` is its state before; where the command only may concern it, nothing is said unless it does.
CREATE OR REPLACE FUNCTION cadastre.note_ddl(
  rel oid, certain boolean, op text, object text, actor name, was jsonb
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack    text;
  d        cadastre.dataset;
  now      jsonb;
  verdict  text;
  service  text;
  in_table text := format('%s.%s', was #>> '{shape,schema}', was #>> '{shape,table}');
  part     record;
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  PERFORM cadastre.called_by(stack, 'cadastre.ddl_guard');
  SELECT * INTO d FROM cadastre.dataset WHERE relid = rel;
  IF NOT FOUND
     OR EXISTS (SELECT FROM cadastre.installing WHERE xid = pg_current_xact_id_if_assigned()) THEN
    RETURN true;
  END IF;
  now := cadastre.state(rel, d.name);
  IF NOT certain AND now IS NOT DISTINCT FROM was THEN
    RETURN true;
  END IF;

  IF (SELECT rolsuper FROM pg_roles WHERE rolname = actor) THEN
    verdict := 'privileged';
    PERFORM cadastre.report(verdict, d.name, op, d.owner, service, actor);
  ELSIF NOT pg_has_role(actor, d.owner_role, 'USAGE') THEN
    verdict := CASE d.mode WHEN 'observe' THEN 'observed' ELSE 'rejected' END;
    service := cadastre.service_of(actor, left(d.owner_role, -length(d.owner)));
    PERFORM cadastre.report(verdict, d.name, op, d.owner, service, actor);
    IF verdict = 'rejected' THEN
      RAISE EXCEPTION USING ERRCODE = '42501',
        SCHEMA = was #>> '{shape,schema}', TABLE = was #>> '{shape,table}',
        MESSAGE = format('cadastre: %s on table "%s" rejected: it is owned by service "%s"; caller is %s',
          op, in_table, d.owner, cadastre.caller(service, actor)),
        DETAIL = format('The command concerns %s. Dataset "%s" is in %s mode. The attempt has been recorded.',
          object, d.name, d.mode),
        HINT = format('Propose the change to service "%s".', d.owner);
    END IF;
  ELSE
    service := d.owner;
    -- The owner may change its table, but not switch off what protects it.
    IF now IS NOT NULL AND (now -> 'published' IS DISTINCT FROM was -> 'published' OR EXISTS (
         SELECT FROM jsonb_each(was -> 'parts') b JOIN jsonb_each(now -> 'parts') a USING (key)
         WHERE (b.value ->> 'guarded')::bool AND NOT (a.value ->> 'guarded')::bool)) THEN
      PERFORM cadastre.report('rejected', d.name, op, d.owner, d.owner, actor);
      RAISE EXCEPTION USING ERRCODE = '42501',
        SCHEMA = was #>> '{shape,schema}', TABLE = was #>> '{shape,table}',
        MESSAGE = format('cadastre: %s on table "%s" rejected: it would switch off the %s of dataset "%s"',
          op, in_table,
          CASE WHEN now -> 'published' IS DISTINCT FROM was -> 'published' THEN 'feed' ELSE 'guard' END, d.name),
        HINT = 'Change the mode of the dataset instead.';
    END IF;
  END IF;

  IF now IS NULL THEN
    DELETE FROM cadastre.dataset WHERE relid = rel;
    PERFORM cadastre.tell_schema('dropped', d.name, rel, was -> 'shape', op, service, actor,
      jsonb_build_object('was', cadastre.name_of(was -> 'shape')));
    RETURN true;
  END IF;
  IF now -> 'shape' <> was -> 'shape' THEN
    PERFORM cadastre.tell_schema(
      CASE WHEN now #> '{shape,schema}' <> was #> '{shape,schema}' THEN 'moved'
           WHEN now #> '{shape,table}' <> was #> '{shape,table}' THEN 'renamed'
           ELSE 'altered' END,
      d.name, rel, now -> 'shape', op, service, actor,
      jsonb_build_object('shape', now -> 'shape', 'was', cadastre.name_of(was -> 'shape')));
  END IF;
  -- A part that comes with this command gets its guard after it, in 07_parts.sql.
  IF EXISTS (SELECT FROM jsonb_each(now -> 'parts') p
             WHERE NOT (p.value ->> 'guarded')::bool AND was -> 'parts' ? p.key) THEN
    -- Let through, and the guard does not stand everywhere: nobody vouches for writers from here on.
    PERFORM cadastre.emit(true, 'guard', json_build_object('v', 1, 'dataset', d.name, 'state', 'off'));
  END IF;
  FOR part IN
    SELECT CASE WHEN b.key IS NULL THEN 'attached' ELSE 'detached' END AS kind,
      coalesce(a.key, b.key)::bigint AS relid, coalesce(a.value, b.value) AS value
    FROM jsonb_each(was -> 'parts') b FULL JOIN jsonb_each(now -> 'parts') a USING (key)
    WHERE a.key IS NULL OR b.key IS NULL
    ORDER BY 1 DESC, 2
  LOOP
    PERFORM cadastre.tell_schema(part.kind, d.name, rel, now -> 'shape', op, service, actor,
      jsonb_build_object('part', cadastre.name_of(part.value) || jsonb_build_object('relid', part.relid)));
  END LOOP;
  RETURN true;
END $$;

-- The name in a shape or a part.
CREATE OR REPLACE FUNCTION cadastre.name_of(shape jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT jsonb_build_object('schema', shape -> 'schema', 'table', shape -> 'table')
$$;

-- Puts one message into the stream. Of use only to cadastre, as emit() is.
CREATE OR REPLACE FUNCTION cadastre.tell_schema(
  kind text, dataset text, rel oid, named jsonb, op text, service text, actor name, more jsonb
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM cadastre.emit(true, 'schema', (jsonb_build_object(
    'v', 1, 'kind', kind, 'dataset', dataset, 'relid', rel::bigint, 'command', op,
    'service', service, 'role', actor, 'login', session_user)
    || cadastre.name_of(named) || more)::json);
END $$;

-- Says that a table exists, or no longer does, that nobody has registered.
CREATE OR REPLACE FUNCTION cadastre.note_table(kind text, rel oid, named jsonb, op text, actor name)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack  text;
  prefix text := (SELECT left(owner_role, -length(owner)) FROM cadastre.dataset LIMIT 1);
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  PERFORM cadastre.called_by(stack, 'cadastre.ddl_guard');
  IF NOT EXISTS (SELECT FROM cadastre.installing WHERE xid = pg_current_xact_id_if_assigned()) THEN
    PERFORM cadastre.tell_schema(kind, NULL, rel, named, op, cadastre.service_of(actor, prefix), actor, '{}');
  END IF;
  RETURN true;
END $$;

-- Says that a foreign key to a governed table was made or dropped by a service that does not own it.
CREATE OR REPLACE FUNCTION cadastre.note_coupling(
  kind text, rel oid, named jsonb, key_name name, referencing jsonb, op text, actor name
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack text;
  d     cadastre.dataset;
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  PERFORM cadastre.called_by(stack, 'cadastre.ddl_guard');
  SELECT * INTO d FROM cadastre.dataset WHERE relid = rel;
  IF FOUND AND (kind = 'uncoupled' OR NOT pg_has_role(actor, d.owner_role, 'USAGE')
                OR (SELECT rolsuper FROM pg_roles WHERE rolname = actor)) THEN
    PERFORM cadastre.tell_schema(kind, d.name, rel, named, op,
      cadastre.service_of(actor, left(d.owner_role, -length(d.owner))), actor,
      jsonb_build_object('constraint', key_name, 'from', cadastre.name_of(referencing)));
  END IF;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION cadastre.tables_now(rels oid[]) RETURNS TABLE (relid oid, named jsonb, part boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT c.oid, jsonb_build_object('schema', n.nspname, 'table', c.relname), c.relispartition
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = ANY (rels) AND c.relkind IN ('r', 'p', 'f');
END $$;

CREATE OR REPLACE FUNCTION cadastre.foreign_keys_now(rel oid)
RETURNS TABLE (key oid, key_name name, to_dataset oid, referencing jsonb)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN QUERY
    SELECT k.oid, k.conname, cadastre.dataset_of(k.confrelid),
      jsonb_build_object('schema', n.nspname, 'table', c.relname)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE k.contype = 'f' AND k.conrelid = rel;
END $$;

-- Compiling a query of the catalogs takes a second where running it takes a millisecond.
CREATE OR REPLACE FUNCTION cadastre.ddl_guard() RETURNS event_trigger
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
DECLARE
  c       record;
  t       record;
  -- Governed tables by OID: whether it is certain that they are concerned, and by which object.
  certain jsonb := '{}';
  because jsonb := '{}';
  -- Other tables that the command names.
  others  oid[] := '{}';
  noted   bool;
BEGIN
  IF TG_EVENT = 'sql_drop' THEN
    FOR c IN
      SELECT * FROM pg_event_trigger_dropped_objects() x WHERE NOT x.is_temporary ORDER BY x.original DESC
    LOOP
      FOR t IN SELECT * FROM cadastre.touched(c.classid, c.objid) LOOP
        certain := certain || jsonb_build_object(t.relid, t.certain OR coalesce((certain ->> t.relid::text)::bool, false));
        because := jsonb_build_object(t.relid, c.object_identity) || because;
      END LOOP;
      IF c.object_type IN ('table', 'foreign table') AND NOT certain ? c.objid::text
         AND c.schema_name NOT IN ('cadastre', 'pg_toast') THEN
        FOR t IN
          SELECT jsonb_build_object('schema', n.nspname, 'table', k.relname) AS named
          FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace
          WHERE k.oid = c.objid AND cadastre.dataset_of(k.oid) IS NULL AND NOT k.relispartition
        LOOP
          noted := cadastre.note_table('gone', c.objid, t.named, TG_TAG, current_user);
        END LOOP;
      ELSIF c.classid = 'pg_constraint'::regclass THEN
        FOR t IN
          SELECT k.conname, cadastre.dataset_of(k.confrelid) AS relid,
            jsonb_build_object('schema', n.nspname, 'table', r.relname) AS referencing
          FROM pg_constraint k JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
          WHERE k.oid = c.objid AND k.contype = 'f' AND cadastre.dataset_of(k.confrelid) IS NOT NULL
        LOOP
          noted := cadastre.note_coupling('uncoupled', t.relid, cadastre.shape(t.relid), t.conname,
                                          t.referencing, TG_TAG, current_user);
        END LOOP;
      END IF;
    END LOOP;
  ELSIF TG_TAG IN ('GRANT', 'REVOKE', 'DROP OWNED') THEN
    -- These do not say which tables they are about.
    FOR t IN
      SELECT a.key FROM jsonb_each(cadastre.privileges_now()) a
      JOIN jsonb_each(cadastre.privileges(false)) b USING (key) WHERE a.value <> b.value
    LOOP
      certain := certain || jsonb_build_object(t.key, true);
      because := because || jsonb_build_object(t.key, 'its privileges');
    END LOOP;
  ELSE
    FOR c IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
      CONTINUE WHEN c.schema_name IN ('pg_temp', 'cadastre', 'pg_toast');
      FOR t IN
        SELECT x.relid, bool_or(x.certain) AS certain FROM (
          SELECT * FROM cadastre.touched(c.classid, c.objid)
          UNION ALL
          SELECT * FROM cadastre.touched_now(c.classid, c.objid)) x
        GROUP BY x.relid
      LOOP
        certain := certain || jsonb_build_object(t.relid, t.certain OR coalesce((certain ->> t.relid::text)::bool, false));
        because := jsonb_build_object(t.relid, c.object_identity) || because;
      END LOOP;
      CONTINUE WHEN c.classid <> 'pg_class'::regclass OR c.object_type NOT IN ('table', 'foreign table');
      others := others || c.objid
        || ARRAY(SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.objid);
      FOR t IN
        SELECT k.* FROM cadastre.foreign_keys_now(c.objid) k
        WHERE k.to_dataset IS NOT NULL AND NOT EXISTS (SELECT FROM pg_constraint b WHERE b.oid = k.key)
      LOOP
        noted := cadastre.note_coupling('coupled', t.to_dataset, cadastre.shape(t.to_dataset), t.key_name,
                                        t.referencing, c.command_tag, current_user);
      END LOOP;
    END LOOP;
  END IF;

  FOR t IN
    SELECT d.relid, d.name, x.value::bool AS certain FROM jsonb_each_text(certain) x
    JOIN cadastre.dataset d ON d.relid = x.key::oid ORDER BY d.name
  LOOP
    -- An assignment, not PERFORM: the stack then shows this function directly below.
    noted := cadastre.note_ddl(t.relid, t.certain, TG_TAG, because ->> t.relid::text, current_user,
                               cadastre.state(t.relid, t.name));
  END LOOP;

  -- Tables that are new, or have another name, and that nobody has registered.
  FOR t IN
    SELECT n.relid, n.named FROM cadastre.tables_now(others) n
    LEFT JOIN (SELECT k.oid, k.relispartition, jsonb_build_object('schema', s.nspname, 'table', k.relname) AS named
               FROM pg_class k JOIN pg_namespace s ON s.oid = k.relnamespace) b ON b.oid = n.relid
    WHERE NOT n.part AND (b.oid IS NULL OR b.relispartition OR b.named <> n.named)
      AND NOT EXISTS (SELECT FROM cadastre.dataset d WHERE d.relid = n.relid)
      AND NOT EXISTS (SELECT FROM cadastre.touched_now('pg_class'::regclass, n.relid) x WHERE x.certain)
    ORDER BY n.relid
  LOOP
    noted := cadastre.note_table('created', t.relid, t.named, TG_TAG, current_user);
  END LOOP;
END $$;

DO $$
DECLARE f regprocedure;
BEGIN
  FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'cadastre'::regnamespace LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO cadastre', f);
  END LOOP;
END $$;

-- Event triggers take a superuser. Where Cadastre is none and none has made them, everything else
-- stands without them: docs/privileges.md says what is lost.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_ddl') THEN
    CREATE EVENT TRIGGER cadastre_ddl ON ddl_command_end EXECUTE FUNCTION cadastre.ddl_guard();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'cadastre_drop') THEN
    CREATE EVENT TRIGGER cadastre_drop ON sql_drop EXECUTE FUNCTION cadastre.ddl_guard();
  END IF;
  IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname IN ('cadastre_ddl', 'cadastre_drop') AND evtenabled <> 'A') THEN
    ALTER EVENT TRIGGER cadastre_ddl ENABLE ALWAYS;
    ALTER EVENT TRIGGER cadastre_drop ENABLE ALWAYS;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$;
