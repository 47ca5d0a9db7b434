-- What the guard says, and to whom. Messages are JSON, read from the WAL by capture:
--
--   cadastre.violation  not transactional, so that it survives the abort that may follow:
--                       {"v","verdict","dataset","op","owner","service","role","login","app",
--                        "client","pid","xid","traceparent","at"}
--   cadastre.writer     transactional: from here on in this transaction, changes of this dataset
--                       are by this role: {"v","dataset","service","role","login","traceparent",
--                        "reason"}
--   cadastre.guard      transactional: from this commit on the guard of this dataset does not stand,
--                       or stands again: {"v","dataset","state":"off"|"on","since"}; since is where
--                       it was last seen to stand, when a comparison and not a command tells it
--   cadastre.schema     transactional: from here on a table is another; see 04_ddl.sql
--   cadastre.ownership  transactional, from whoever installs the guard: from here on the dataset has
--                       this owner and mode: {"v","dataset","owner","mode","ownerBefore",
--                       "modeBefore","transfer","reason","actor"}
--
-- These functions run as cadastre, the only role that may emit messages. They can be called by
-- anyone, so they look at who called them: the second line of the call stack must be the guard
-- itself. The guard runs only as a trigger, and triggers with it are made by superusers only.
--
-- Such a line reads `words name(arguments) words number words statement`. The words are of the
-- server's language: they are compared with those of the first line, which is our own. Lines of other
-- kinds may hold a name of the caller's making, unquoted (COPY names its table so), but have other
-- words, and a number after the name. A session may have quote_all_identifiers on.

CREATE OR REPLACE FUNCTION cadastre.called_by(stack text, caller text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  own   text[] := regexp_match(split_part(stack, E'\n', 1),
    '^(.*?)"?cadastre"?[.]"?[a-z_]+"?[(][^)]*[)]([^0-9]*)[0-9]+([^0-9]*)GET DIAGNOSTICS$');
  line  text := split_part(stack, E'\n', 2);
  spelt text;
  start text;
  rest  text;
BEGIN
  FOREACH spelt IN ARRAY ARRAY[caller, concat('"', replace(caller, '.', '"."'), '"')] LOOP
    start := concat(own[1], spelt, '()', own[2]);
    rest := substr(line, length(start) + 1);
    IF own IS NOT NULL AND starts_with(line, start) AND rest ~ '^[0-9]'
       AND starts_with(ltrim(rest, '0123456789'), own[3])
       AND substr(ltrim(rest, '0123456789'), length(own[3]) + 1) ~ '^[^0-9]+$' THEN
      RETURN;
    END IF;
  END LOOP;
  RAISE EXCEPTION 'cadastre: only the guard can report writers and attempts'
    USING ERRCODE = '42501';
END $$;

-- The session's trace context if it is one (W3C Trace Context, version 00), else null. An owner who
-- traces pays for it in each transaction: it is qualified instead of pinned to a search_path, so that
-- PostgreSQL puts it in line, and a regular expression would take ten times as long.
CREATE OR REPLACE FUNCTION cadastre.traceparent() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE
    WHEN pg_catalog.translate(pg_catalog.current_setting('cadastre.traceparent', true), '0123456789abcdef', '')
           OPERATOR(pg_catalog.=) '---'
     AND pg_catalog.current_setting('cadastre.traceparent', true)
           OPERATOR(pg_catalog.~~) '00-________________________________-________________-__'
     AND pg_catalog.current_setting('cadastre.traceparent', true)
           OPERATOR(pg_catalog.!~~) '00-00000000000000000000000000000000-%'
     AND pg_catalog.current_setting('cadastre.traceparent', true)
           OPERATOR(pg_catalog.!~~) '%-0000000000000000-__'
    THEN pg_catalog.current_setting('cadastre.traceparent', true) END
$$;

-- Whether a role is a superuser. Membership of cadastre_nobody does not tell by itself: before
-- PostgreSQL 16, whoever may create roles may grant it.
CREATE OR REPLACE FUNCTION cadastre.superuser(actor name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT rolsuper FROM pg_roles WHERE rolname = actor
$$;

-- The service that a role writes for, by the group it is a member of; null for none, and for a
-- superuser, who is in every group. Only groups that Cadastre made count, whatever others are called.
CREATE OR REPLACE FUNCTION cadastre.service_of(actor name, prefix text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT s.name
  FROM cadastre.service s JOIN pg_roles g ON g.oid = s.group_role
  WHERE starts_with(g.rolname, prefix)
    AND NOT cadastre.superuser(actor)
    AND pg_has_role(actor, g.oid, 'USAGE')
  ORDER BY 1 LIMIT 1
$$;

-- Whether somebody who is not the owner may write a dataset for now: by the clock, not by the
-- transaction's beginning, so that a permission ends on time.
CREATE OR REPLACE FUNCTION cadastre.breaks_glass(of_dataset text, actor name) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (
    SELECT FROM cadastre.break_glass b JOIN cadastre.service s ON s.name = b.service
    WHERE b.dataset = of_dataset AND clock_timestamp() < b.expires_at
      AND pg_has_role(actor, s.group_role, 'USAGE'))
$$;

-- Puts a message into the WAL, in UTF-8 whatever the database's encoding: nothing converts it later.
-- It runs with its caller's rights, so that it is of use only to cadastre. Qualified, to be put in line.
CREATE OR REPLACE FUNCTION cadastre.emit(transactional boolean, kind text, body json) RETURNS pg_lsn
LANGUAGE sql AS $$
  SELECT pg_catalog.pg_logical_emit_message(transactional, 'cadastre.' OPERATOR(pg_catalog.||) kind,
                                            pg_catalog.convert_to(body::pg_catalog.text, 'UTF8'))
$$;

-- Reports an attempt. Assigning a transaction id first makes its abort flush the message.
CREATE OR REPLACE FUNCTION cadastre.report(
  verdict text, dataset text, op text, owner text, service text, actor name
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE xid xid8 := pg_current_xact_id();
BEGIN
  PERFORM cadastre.emit(false, 'violation', json_build_object(
    'v', 1, 'verdict', verdict, 'dataset', dataset, 'op', op, 'owner', owner, 'service', service,
    'role', actor, 'login', session_user, 'app', nullif(current_setting('application_name'), ''),
    'client', host(inet_client_addr()), 'pid', pg_backend_pid(), 'xid', xid::text,
    'traceparent', cadastre.traceparent(), 'at', clock_timestamp()));
END $$;

-- What the guard does once a statement is not simply the owner's: see 03_guard.sql for when.
--
-- The owner with a trace context takes the first branches, in which each expression is one that
-- PL/pgSQL evaluates without a query: no PERFORM, no subselect, few of them.
CREATE OR REPLACE FUNCTION cadastre.note(
  dataset text, owner text, owner_role name, mode text, op text,
  in_schema name, in_table name, actor name
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stack   text;
  trace   text := cadastre.traceparent();
  key     text;
  told    boolean;
  verdict text;
  service text;
BEGIN
  GET DIAGNOSTICS stack = PG_CONTEXT;
  -- As it nearly always begins. Only another language of the server's or quoted names need what
  -- called_by() does, which takes longer than all the rest.
  IF position(
       'PL/pgSQL function cadastre.note(text,text,name,text,text,name,name,name) line 10 at GET DIAGNOSTICS'
       || E'\nPL/pgSQL function cadastre_guard.guard() line 12 at assignment' IN stack) <> 1 THEN
    PERFORM cadastre.called_by(stack, CASE WHEN split_part(stack, E'\n', 2) ~ 'guard_row' THEN 'cadastre_guard.guard_row'
                                           ELSE 'cadastre_guard.guard' END);
  END IF;
  key := concat('|', actor, ':', pg_current_xact_id(), ':', dataset, ':', trace, '|');

  IF pg_has_role(actor, owner_role, 'USAGE')
     AND NOT (pg_has_role(actor, 'cadastre_nobody', 'MEMBER') AND cadastre.superuser(actor)) THEN
    -- The owner, with a trace context or after somebody else in the same transaction. Once is
    -- enough until somebody else writes this dataset; a savepoint's rollback takes back both the
    -- message and the setting.
    IF position(key IN current_setting('cadastre.marker', true)) > 0 THEN
      RETURN true;
    END IF;
    told := cadastre.emit(true, 'writer', json_build_object(
        'v', 1, 'dataset', dataset, 'service', owner, 'role', actor, 'login', session_user,
        'traceparent', trace, 'reason', 'trace')) IS NOT NULL
      AND set_config('cadastre.marker',
        concat(right(current_setting('cadastre.marker', true), 2000), key), true) IS NOT NULL;
    RETURN told;
  ELSIF cadastre.superuser(actor) THEN
    verdict := 'privileged';
  ELSE
    verdict := CASE WHEN cadastre.breaks_glass(dataset, actor) THEN 'break_glass'
                    WHEN mode = 'observe' THEN 'observed' ELSE 'rejected' END;
    service := cadastre.service_of(actor, left(owner_role, -length(owner)));
  END IF;

  PERFORM cadastre.report(verdict, dataset, op, owner, service, actor);
  IF verdict = 'rejected' THEN
    RAISE EXCEPTION USING ERRCODE = '42501', SCHEMA = in_schema, TABLE = in_table,
      MESSAGE = format('cadastre: %s on table "%s.%s" rejected: it is owned by service "%s"; caller is %s',
        op, in_schema, in_table, owner, cadastre.caller(service, actor)),
      DETAIL = format('Dataset "%s" is in %s mode. The attempt has been recorded.', dataset, mode),
      HINT = format('Ask service "%s" for an API, or subscribe to the feed of "%s".', owner, dataset);
  END IF;
  -- Each statement, not only the first: what a session could set to hide its name is not trusted.
  PERFORM cadastre.emit(true, 'writer', json_build_object(
    'v', 1, 'dataset', dataset, 'service', service, 'role', actor, 'login', session_user,
    'traceparent', trace, 'reason', verdict));
  PERFORM set_config('cadastre.marker', key, true);
  RETURN true;
END $$;

-- Names a caller in an error.
CREATE OR REPLACE FUNCTION cadastre.caller(service text, actor name) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT concat(CASE WHEN service IS NULL THEN 'no registered service'
                     ELSE format('service "%s"', service) END,
                format(' (role "%s", login "%s")', actor, session_user))
$$;

DO $$
DECLARE f regprocedure;
BEGIN
  FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'cadastre'::regnamespace LOOP
    EXECUTE format('ALTER FUNCTION %s OWNER TO cadastre', f);
  END LOOP;
END $$;
