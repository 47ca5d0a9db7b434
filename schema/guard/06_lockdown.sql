-- Lockdown: beside the guard, which stays, whoever is not the owner's loses the privileges to write a
-- dataset: INSERT, UPDATE, DELETE, TRUNCATE and TRIGGER on its table, its columns, partitions and
-- children, USAGE and UPDATE on the sequences of its columns. What is taken is remembered, and given
-- back exactly when the mode is lowered.
--
-- A role is the owner's if it has the rights of the owner's group role. A grant to PUBLIC, or to a
-- role that also others are members of, is taken; roles of the owner that had a privilege only
-- through it are granted it themselves meanwhile.
--
-- Not taken: what the table's PostgreSQL owner may do by owning it, because checks of foreign keys
-- run as that role; REFERENCES and SELECT, which change no row; what pg_write_all_data gives, which
-- no table can refuse. The guard still answers those. `cadastre doctor` lists who is left.
--
-- Whoever may break glass for a time has meanwhile, itself, what was taken from it. The guard ends that
-- on time; the next comparison takes the privileges.
--
-- These functions run as whoever installs guards, with that role's rights, and are of use to nobody
-- else: the record of what was taken is written by Cadastre alone.

CREATE TABLE IF NOT EXISTS cadastre.privilege (
  dataset   text NOT NULL,
  -- True: taken, to be given back. False: granted to a role instead, to be taken back.
  taken     boolean NOT NULL,
  relid     oid NOT NULL,
  -- The column; 0 for the whole.
  attnum    smallint NOT NULL,
  privilege text NOT NULL,
  grantor   oid NOT NULL,
  -- 0 is PUBLIC.
  grantee   oid NOT NULL,
  grantable boolean NOT NULL,
  PRIMARY KEY (dataset, taken, relid, attnum, privilege, grantor, grantee)
);
ALTER TABLE cadastre.privilege OWNER TO cadastre;
GRANT SELECT ON cadastre.privilege TO PUBLIC;

-- A governed table with its partitions and children, but for those that are governed themselves.
CREATE OR REPLACE FUNCTION cadastre.parts_of(root oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE tree (oid) AS (
    SELECT root
    UNION
    SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
    WHERE NOT EXISTS (SELECT FROM cadastre.dataset d WHERE d.relid = i.inhrelid))
  SELECT tree.oid FROM tree
$$;

-- Privileges to write a governed table, its parts and their sequences, but the PostgreSQL owner's.
CREATE OR REPLACE FUNCTION cadastre.writers(root oid)
RETURNS TABLE (relid oid, attnum smallint, privilege text, grantor oid, grantee oid, grantable boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  WITH part AS (
    SELECT c.* FROM cadastre.parts_of(root) p JOIN pg_class c ON c.oid = p
  ), sequence AS (
    SELECT c.* FROM part JOIN pg_depend d
      ON d.refclassid = 'pg_class'::regclass AND d.refobjid = part.oid AND d.refobjsubid > 0
        AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S'
  ), entry AS (
    SELECT part.oid, part.relowner, 0::smallint AS attnum, a.* FROM part CROSS JOIN aclexplode(part.relacl) a
    WHERE a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
    UNION ALL
    SELECT part.oid, part.relowner, t.attnum, a.*
    FROM part JOIN pg_attribute t ON t.attrelid = part.oid CROSS JOIN aclexplode(t.attacl) a
    WHERE a.privilege_type IN ('INSERT', 'UPDATE')
    UNION ALL
    SELECT sequence.oid, sequence.relowner, 0::smallint, a.* FROM sequence CROSS JOIN aclexplode(sequence.relacl) a
    WHERE a.privilege_type IN ('USAGE', 'UPDATE')
  )
  SELECT DISTINCT e.oid, e.attnum, e.privilege_type, e.grantor, e.grantee, e.is_grantable
  FROM entry e WHERE e.grantee <> e.relowner
$$;

-- The statement that grants or revokes one privilege; null when the object or a role is gone.
CREATE OR REPLACE FUNCTION cadastre.privilege_sql(
  verb text, rel oid, attnum smallint, privilege text, grantee oid, ending text
) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT format('%s %s%s ON %s %I.%I %s %s%s', verb, privilege,
    CASE WHEN privilege_sql.attnum > 0 THEN format(' (%I)', a.attname) END,
    CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname,
    CASE verb WHEN 'GRANT' THEN 'TO' ELSE 'FROM' END,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE format('%I', r.rolname) END, ending)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = privilege_sql.attnum AND NOT a.attisdropped
  LEFT JOIN pg_roles r ON r.oid = grantee
  WHERE c.oid = rel AND (privilege_sql.attnum = 0 OR a.attname IS NOT NULL)
    AND (grantee = 0 OR r.rolname IS NOT NULL)
$$;

-- Runs it as the role that granted; as the PostgreSQL owner where that is the same, or where that role
-- is out of reach: revoking with CASCADE from whom the owner granted takes that back as well, and what
-- is given back is then the owner's grant.
CREATE OR REPLACE FUNCTION cadastre.as_grantor(rel oid, grantor oid, statement text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  -- RESET ROLE would go back to the session's own, which need not be the one before.
  before text := current_setting('role');
BEGIN
  IF statement IS NULL THEN
    RETURN;
  END IF;
  IF (SELECT pg_has_role(grantor, relowner, 'USAGE') FROM pg_class WHERE oid = rel) IS NOT FALSE
     OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.oid = grantor AND pg_has_role(r.oid, 'MEMBER')) THEN
    EXECUTE statement;
    RETURN;
  END IF;
  PERFORM set_config('role', pg_get_userbyid(grantor), true);
  EXECUTE statement;
  PERFORM set_config('role', before, true);
END $$;

-- Whether a role has a privilege, by whatever way.
CREATE OR REPLACE FUNCTION cadastre.holds(role oid, rel oid, attnum smallint, privilege text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE
    WHEN c.relkind = 'S' THEN has_sequence_privilege(role, rel, privilege)
    WHEN attnum > 0 THEN has_column_privilege(role, rel, attnum, privilege)
    ELSE has_table_privilege(role, rel, privilege) END
  FROM pg_class c WHERE c.oid = rel
$$;

-- Whether a role may write a dataset: the owner's, or one that breaks glass for now.
CREATE OR REPLACE FUNCTION cadastre.may_write(d cadastre.dataset, role oid) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT role <> 0 AND (pg_has_role(role, d.owner_role, 'USAGE')
    OR coalesce(cadastre.breaks_glass(d.name, (SELECT rolname FROM pg_roles WHERE oid = role)), false))
$$;

-- Grants a role a privilege that it has lost by another's, and remembers to take it back.
CREATE OR REPLACE FUNCTION cadastre.grant_instead(
  dataset text, relid oid, attnum smallint, privilege text, relowner oid, grantee oid
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  EXECUTE cadastre.privilege_sql('GRANT', relid, attnum, privilege, grantee, '');
  INSERT INTO cadastre.privilege
  VALUES (dataset, false, relid, attnum, privilege, relowner, grantee, false)
  ON CONFLICT DO NOTHING;
END $$;

-- Takes from others what they can write a part of a dataset with, or all of it from its root on, and
-- remembers it. Twice is as good as once.
CREATE OR REPLACE FUNCTION cadastre.take(root oid, part oid) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d      cadastre.dataset;
  before cadastre.privilege[];
  held   cadastre.privilege[];
  e      record;
BEGIN
  SELECT * INTO STRICT d FROM cadastre.dataset WHERE relid = root;
  SELECT array_agg(ROW(d.name, true, w.*)::cadastre.privilege) INTO before FROM cadastre.writers(part) w;
  IF NOT EXISTS (
    SELECT FROM unnest(before) w
    WHERE NOT cadastre.may_write(d, w.grantee)) THEN
    RETURN false;
  END IF;
  SELECT array_agg(ROW(d.name, false, x.relid, x.attnum, x.privilege, 0, r.oid, false)::cadastre.privilege) INTO held
  FROM (SELECT DISTINCT w.relid, w.attnum, w.privilege FROM unnest(before) w) x
  JOIN pg_roles r ON NOT r.rolsuper AND pg_has_role(r.oid, d.owner_role, 'USAGE')
    AND cadastre.holds(r.oid, x.relid, x.attnum, x.privilege);

  FOR e IN
    SELECT * FROM unnest(before) w
    WHERE NOT cadastre.may_write(d, w.grantee)
    ORDER BY w.relid, w.attnum, w.privilege, w.grantee
  LOOP
    PERFORM cadastre.as_grantor(e.relid, e.grantor,
      cadastre.privilege_sql('REVOKE', e.relid, e.attnum, e.privilege, e.grantee, ' CASCADE'));
  END LOOP;
  -- What is gone now was taken, also what CASCADE took from others.
  INSERT INTO cadastre.privilege
  SELECT w.* FROM unnest(before) w
  WHERE NOT EXISTS (
    SELECT FROM cadastre.writers(part) n
    WHERE (n.relid, n.attnum, n.privilege, n.grantor, n.grantee) = (w.relid, w.attnum, w.privilege, w.grantor, w.grantee))
  ON CONFLICT (dataset, taken, relid, attnum, privilege, grantor, grantee)
    DO UPDATE SET grantable = excluded.grantable;
  -- And what the owner's roles had by it is granted to them.
  FOR e IN
    SELECT h.*, c.relowner FROM unnest(held) h JOIN pg_class c ON c.oid = h.relid
    WHERE NOT cadastre.holds(h.grantee, h.relid, h.attnum, h.privilege)
    ORDER BY h.relid, h.attnum, h.privilege, h.grantee
  LOOP
    PERFORM cadastre.grant_instead(d.name, e.relid, e.attnum, e.privilege, e.relowner, e.grantee);
  END LOOP;
  PERFORM cadastre.lend(d);
  RETURN true;
END $$;

-- Grants what was taken to those who may break glass for now, as far as they had it.
CREATE OR REPLACE FUNCTION cadastre.lend(d cadastre.dataset) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE e record;
BEGIN
  FOR e IN
    SELECT DISTINCT p.relid, p.attnum, p.privilege, m.oid AS grantee, c.relowner
    FROM cadastre.break_glass b JOIN cadastre.service s ON s.name = b.service
    JOIN pg_auth_members a ON a.roleid = s.group_role JOIN pg_roles m ON m.oid = a.member
    JOIN cadastre.privilege p ON p.dataset = d.name AND p.taken
      AND CASE p.grantee WHEN 0 THEN true ELSE pg_has_role(m.oid, p.grantee, 'USAGE') END
    JOIN pg_class c ON c.oid = p.relid
    WHERE b.dataset = d.name AND clock_timestamp() < b.expires_at
      AND NOT m.rolsuper AND pg_has_role(m.oid, s.group_role, 'USAGE')
      AND NOT cadastre.holds(m.oid, p.relid, p.attnum, p.privilege)
    ORDER BY 1, 2, 3, 4
  LOOP
    PERFORM cadastre.grant_instead(d.name, e.relid, e.attnum, e.privilege, e.relowner, e.grantee);
  END LOOP;
END $$;

-- Gives back what was taken for a dataset, and takes back what was granted instead.
CREATE OR REPLACE FUNCTION cadastre.give_back(dataset_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  e    record;
  left_over int := -1;
  found_now int;
BEGIN
  IF NOT EXISTS (SELECT FROM cadastre.privilege p WHERE p.dataset = dataset_name) THEN
    RETURN false;
  END IF;
  FOR e IN SELECT * FROM cadastre.privilege p WHERE p.dataset = dataset_name AND NOT p.taken LOOP
    PERFORM cadastre.as_grantor(e.relid, e.grantor,
      cadastre.privilege_sql('REVOKE', e.relid, e.attnum, e.privilege, e.grantee, ' CASCADE'));
  END LOOP;
  DELETE FROM cadastre.privilege p WHERE p.dataset = dataset_name AND NOT p.taken;
  -- Whoever passed a privilege on needs it back first: as often as that makes a difference, then
  -- the rest in the PostgreSQL owner's name, because who granted it can no longer do so.
  LOOP
    SELECT count(*) INTO found_now FROM cadastre.privilege p WHERE p.dataset = dataset_name;
    EXIT WHEN found_now = 0;
    FOR e IN
      SELECT p.* FROM cadastre.privilege p JOIN pg_class c ON c.oid = p.relid
      WHERE p.dataset = dataset_name
        AND (found_now = left_over OR p.grantor = c.relowner
             OR EXISTS (SELECT FROM pg_roles r WHERE r.oid = p.grantor
                        AND cadastre.holds(r.oid, p.relid, p.attnum, p.privilege || ' WITH GRANT OPTION')))
    LOOP
      PERFORM cadastre.as_grantor(e.relid, CASE WHEN found_now <> left_over THEN e.grantor END,
        cadastre.privilege_sql('GRANT', e.relid, e.attnum, e.privilege, e.grantee,
          CASE WHEN e.grantable AND e.grantee <> 0 THEN ' WITH GRANT OPTION' ELSE '' END));
      DELETE FROM cadastre.privilege p
      WHERE (p.dataset, p.taken, p.relid, p.attnum, p.privilege, p.grantor, p.grantee)
          = (e.dataset, e.taken, e.relid, e.attnum, e.privilege, e.grantor, e.grantee);
    END LOOP;
    -- Of tables that are gone nothing is left to give.
    DELETE FROM cadastre.privilege p
    WHERE p.dataset = dataset_name AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.relid);
    left_over := found_now;
  END LOOP;
  RETURN true;
END $$;

-- Makes privileges what the dataset's mode and owner say: anew when roles have come to a service or
-- left it, or when others may break glass. Returns whether that took a change.
CREATE OR REPLACE FUNCTION cadastre.keep_privileges(root oid, anew boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d       cadastre.dataset;
  changed boolean := false;
BEGIN
  SELECT * INTO STRICT d FROM cadastre.dataset WHERE relid = root;
  IF d.mode <> 'lockdown' OR anew OR EXISTS (
    -- The owner is another since, or a time to break glass is over.
    SELECT FROM cadastre.privilege p JOIN pg_roles r ON r.oid = p.grantee
    WHERE p.dataset = d.name
      AND CASE WHEN p.taken THEN pg_has_role(r.oid, d.owner_role, 'USAGE') ELSE NOT cadastre.may_write(d, r.oid) END
      -- What CASCADE took from the owner's it has by other ways.
      AND NOT (p.taken AND EXISTS (
        SELECT FROM cadastre.privilege q WHERE q.dataset = d.name AND q.taken AND q.grantee = p.grantor))) THEN
    changed := cadastre.give_back(d.name);
  END IF;
  IF d.mode = 'lockdown' THEN
    changed := cadastre.take(root, root) OR changed;
  END IF;
  RETURN changed;
END $$;

DO $$
DECLARE f regprocedure;
BEGIN
  FOR f IN
    SELECT p.oid FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'cadastre'::regnamespace
      AND p.proname IN ('parts_of', 'writers', 'may_write', 'grant_instead', 'lend', 'privilege_sql', 'as_grantor', 'holds', 'take', 'give_back', 'keep_privileges')
  LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO cadastre', f);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f);
  END LOOP;
END $$;
