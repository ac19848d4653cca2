-- Creates the database roles of resolver-agent, and the functions through which it does what only a superuser may do.
--
--     resolver_agent        logs in over the network, to see what each server is. It has LOGIN and no other right.
--     resolver_agent_local  logs in over the socket of its own server only, and has no password. It may set two parameters
--                           of Citus, reload the configuration and call the functions below. Without Citus it needs none
--                           of that. The comment above each right says what it is for.
--
-- Run this file as a superuser on the primary of every group, in any order, in the database that the agent connects to
-- (`postgres`) and in each database that has Citus. You can run it again at any time, also after an upgrade of
-- PostgreSQL or Citus. Standbys receive all of it by replication.
--
--     psql -v ON_ERROR_STOP=1 -d postgres -f role.sql
--     psql -v ON_ERROR_STOP=1 -d app -f role.sql
--     PGOPTIONS='-c password_encryption=scram-sha-256' psql -d postgres -c '\password resolver_agent'
--
-- The last line prompts for the password, and keeps it out of the server's log. Before PostgreSQL 14 it would be stored
-- in another way without the option, and the method below would refuse it.
--
-- pg_hba.conf, on every node, above any wider line, because the first match counts (with Patroni: postgresql.pg_hba):
--
--     # TYPE  DATABASE  USER                  ADDRESS           METHOD
--     local   all       resolver_agent_local                    peer map=resolver_agent
--     host    all       resolver_agent_local  all               reject
--     host    postgres  resolver_agent        192.168.234.0/24  scram-sha-256
--
-- The first line is for the agent on the same node, which also looks for Citus in each database. It runs as root, and
-- pg_ident.conf allows root to log in as this role only (with Patroni: postgresql.pg_ident):
--
--     # MAPNAME       SYSTEM-USERNAME  PG-USERNAME
--     resolver_agent  root             resolver_agent_local
--
-- In the agent's configuration, the login on its own node then has this user:
--
--     local: {host: /var/run/postgresql, user: resolver_agent_local}
--
-- The last line of pg_hba.conf is for the agents on the other nodes. They find the password in
-- /etc/resolver-agent.pgpass (owner root, mode 0600):
--
--     *:5432:postgres:resolver_agent:PASSWORD
--
-- Afterwards, on every node: SELECT pg_reload_conf();
--
-- An older version of this file gave the rights to resolver_agent. This one takes them away. So first add the lines to
-- pg_hba.conf and pg_ident.conf on every node of a group, then run this file on its primary, and right afterwards change
-- `local` and reload the agents: until an agent logs in as resolver_agent_local, it cannot flush cached connections, 2PC
-- recovery waits, and both are alerts. At last remove the old lines for resolver_agent with the method peer.
--
-- If CONNECT was revoked from PUBLIC, grant it:
-- GRANT CONNECT ON DATABASE postgres TO resolver_agent, resolver_agent_local;
--
-- Before PostgreSQL 15 the right to use ALTER SYSTEM on a parameter cannot be granted. With Citus there, the agent
-- can flush cached connections only if its login on its own node is a superuser: in its configuration
-- `local: {user: postgres}`, in pg_hba.conf `local all postgres peer map=resolver_agent`, and in pg_ident.conf
-- `resolver_agent root postgres` and `resolver_agent postgres postgres`.
--
-- To remove all of it, after `resolver-agent remove` on every node, run on every primary, in each of these databases:
--
--     BEGIN;
--     SET LOCAL citus.enable_ddl_propagation = off;
--     DROP SCHEMA resolver_agent CASCADE;
--     DROP OWNED BY resolver_agent, resolver_agent_local;
--     COMMIT;
--
-- After the last database run the following on every primary, on the coordinator's first and in a database that has
-- Citus: if Citus once propagated a role to the workers, it must forget the role, too.
--
--     DROP ROLE IF EXISTS resolver_agent, resolver_agent_local;

BEGIN;

-- Every primary gets the roles and functions by this file, not through Citus. Without Citus the setting has no effect.
SET LOCAL citus.enable_ddl_propagation = off;
-- Otherwise the owner of a database could plant operators that this file would execute as a superuser.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    member name;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'resolver_agent') THEN
        CREATE ROLE resolver_agent;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'resolver_agent_local') THEN
        CREATE ROLE resolver_agent_local;
    END IF;
    SELECT m.member::pg_catalog.regrole INTO member
      FROM pg_catalog.pg_auth_members AS m WHERE m.roleid = 'resolver_agent_local'::pg_catalog.regrole LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'role % is a member of resolver_agent_local, and would have its rights', member
              USING HINT = 'Revoke the membership, then run this file again.';
    END IF;
END
$$;

-- Whoever created the roles: neither is more than its comment says.
ALTER ROLE resolver_agent LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
ALTER ROLE resolver_agent_local LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD NULL;
COMMENT ON ROLE resolver_agent IS 'resolver-agent: watches servers over the network';
COMMENT ON ROLE resolver_agent_local IS 'resolver-agent: cares for the connections of Citus, over the local socket only';

-- Flush: a new value of citus.node_conninfo makes every session close the connections that Citus has cached in it.
-- Queue: while citus.max_cached_conns_per_worker is 0, no session caches another one.
DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 150000 THEN  -- a syntax error before
        EXECUTE 'REVOKE ALTER SYSTEM ON PARAMETER citus.node_conninfo FROM resolver_agent';
        EXECUTE 'GRANT ALTER SYSTEM ON PARAMETER citus.node_conninfo TO resolver_agent_local';
        EXECUTE 'GRANT ALTER SYSTEM ON PARAMETER citus.max_cached_conns_per_worker TO resolver_agent_local';
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() FROM resolver_agent;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO resolver_agent_local;

-- Dropped and created, not replaced: whatever was here before, all of it now belongs to a superuser.
DROP SCHEMA IF EXISTS resolver_agent CASCADE;
CREATE SCHEMA resolver_agent;
COMMENT ON SCHEMA resolver_agent IS 'resolver-agent: what it does with a superuser''s rights';

-- Flush: where the value of citus.node_conninfo comes from, which only a superuser may read. `loaded` is the value in
-- this session, NULL without Citus; `altered` is the one in postgresql.auto.conf, `configured` the last one in all
-- other files, `boot` the built-in one. `faults` are the errors for which PostgreSQL refuses to load any of the files.
CREATE FUNCTION resolver_agent.node_conninfo(
    OUT loaded text, OUT altered text, OUT configured text, OUT boot text, OUT on_command_line boolean, OUT faults text
)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('citus.node_conninfo', true),
           (array_agg(setting ORDER BY seqno DESC) FILTER (WHERE ours AND automatic))[1],
           (array_agg(setting ORDER BY seqno DESC) FILTER (WHERE ours AND NOT automatic))[1],
           (SELECT boot_val FROM pg_settings WHERE name = 'citus.node_conninfo'),
           EXISTS (SELECT FROM pg_settings WHERE name = 'citus.node_conninfo' AND source = 'command line'),
           CASE WHEN NOT bool_or(applied)
                THEN string_agg(concat_ws(': ', sourcefile || ' line ' || sourceline, name, error), '; ' ORDER BY seqno)
                         FILTER (WHERE error IS NOT NULL)
           END
      FROM (SELECT *, lower(name) = 'citus.node_conninfo' AS ours,
                   sourcefile LIKE '%/postgresql.auto.conf' AS automatic
              FROM pg_file_settings) AS files
$$;

-- Queue: the value of citus.max_cached_conns_per_worker, likewise.
CREATE FUNCTION resolver_agent.max_cached_conns_per_worker(
    OUT loaded text, OUT altered text, OUT on_command_line boolean
)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT current_setting('citus.max_cached_conns_per_worker', true),
           (SELECT setting FROM pg_file_settings
             WHERE lower(name) = 'citus.max_cached_conns_per_worker' AND sourcefile LIKE '%/postgresql.auto.conf'
             ORDER BY seqno DESC LIMIT 1),
           EXISTS (SELECT FROM pg_settings
                    WHERE name = 'citus.max_cached_conns_per_worker' AND source = 'command line')
$$;

-- Queue: which client sessions run a command (`active`), or are idle in a transaction, and since when; only their owners
-- may see that. `inside` are those whose transaction holds a lock on pg_dist_node of this database, as it does once it
-- has used a distributed table: they go on while the gate is closed.
CREATE FUNCTION resolver_agent.under_way(
    OUT pid integer, OUT active boolean, OUT since timestamptz, OUT inside boolean
) RETURNS SETOF record
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.pid, a.state NOT LIKE 'idle%', CASE WHEN a.state LIKE 'idle%' THEN a.state_change ELSE a.query_start END,
           EXISTS (SELECT FROM pg_locks AS l
                    WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted
                      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                      AND l.relation = to_regclass('pg_catalog.pg_dist_node'))
      FROM pg_stat_activity AS a
     WHERE a.backend_type = 'client backend' AND a.state <> 'idle' AND a.pid <> pg_backend_pid()
$$;

-- Queue: the gate is a request for an ACCESS EXCLUSIVE lock on pg_dist_node that waits. Statements that have not used a
-- distributed table yet wait behind it, the others go on. These two functions, in two sessions, close it: the first
-- keeps the request from being granted, the second is the request. It lasts for lock_timeout, 15 s at most. If it were
-- granted, standbys would replay the lock. So it is not made without the first, and when granted it is given up at once,
-- by an error that also ends a transaction around it.
CREATE FUNCTION resolver_agent.keep_gate() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM pg_dist_node LIMIT 1;
    PERFORM pg_sleep(20);
END
$$;

CREATE FUNCTION resolver_agent.close_gate() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given CONSTANT interval := current_setting('lock_timeout')::interval;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
                    WHERE l.locktype = 'relation' AND l.granted AND l.relation = 'pg_dist_node'::regclass
                      AND a.datname = current_database() AND a.usename = session_user AND a.wait_event = 'PgSleep') THEN
        RAISE EXCEPTION 'nothing keeps the gate from being granted';
    END IF;
    IF given = interval '0' OR given > interval '15 s' THEN
        SET LOCAL lock_timeout = '15s';
    END IF;
    LOCK TABLE pg_catalog.pg_dist_node IN ACCESS EXCLUSIVE MODE;
    RAISE EXCEPTION 'the gate was granted, and is given up';
END
$$;

-- Recovery and clean-up: which servers the names in pg_dist_node resolve to right now. Citus asks each over a new
-- connection, so with a new look-up. `result` is the role, group, system identifier and start time of a server that
-- answered. It begins with `stranger` if its group is not the one in pg_dist_node: recovery there would resolve
-- transactions of another group. A coordinator that is not in pg_dist_node is left out: Citus resolves nothing on it.
CREATE FUNCTION resolver_agent.reached() RETURNS TABLE (node text, success boolean, result text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    question CONSTANT text := $question$
        SELECT pg_catalog.concat_ws(' ', CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby' ELSE 'primary' END,
                                    groupid, system_identifier, pg_catalog.pg_postmaster_start_time())
          FROM pg_catalog.pg_control_system(), pg_catalog.pg_dist_local_group
    $question$;
    own text;
BEGIN
    IF to_regproc('pg_catalog.run_command_on_all_nodes') IS NOT NULL THEN
        RETURN QUERY SELECT n.nodename || ':' || n.nodeport, r.success,
                            CASE WHEN n.hasmetadata AND split_part(r.result, ' ', 2) <> n.groupid::text
                                 THEN 'stranger ' || r.result ELSE r.result END
                       FROM run_command_on_all_nodes(question) AS r JOIN pg_dist_node AS n USING (nodeid);
    ELSE  -- before Citus 11, where a worker need not know its group: at least it is not this server
        EXECUTE question INTO own;
        RETURN QUERY SELECT r.node_name || ':' || r.node_port, r.success,
                            CASE WHEN r.result = own AND n.groupid <> l.groupid THEN 'stranger ' || r.result
                                 ELSE r.result END
                       FROM pg_dist_local_group AS l,
                            (SELECT array_agg(nodename) AS names, array_agg(nodeport) AS ports,
                                    array_agg(question) AS questions
                               FROM pg_dist_node WHERE isactive AND noderole = 'primary') AS nodes,
                            master_run_on_worker(nodes.names, nodes.ports, nodes.questions, true) AS r
                       JOIN pg_dist_node AS n ON n.nodename = r.node_name AND n.nodeport = r.node_port;
    END IF;
END
$$;

-- Recovery: the agent calls it in a transaction, and commits only if the right servers were reached before and after.
CREATE FUNCTION resolver_agent.recover_prepared_transactions() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN pg_catalog.recover_prepared_transactions();
END
$$;

-- Clean-up: Citus refuses it in a transaction block, so this function makes the checks. An error undoes the deletes of
-- Citus' notes on what is left over, and the next clean-up tries again. It must be called in a statement of its own.
-- Two nodes that are one server show that a name leads to another group where no worker knows its group (Citus 10).
CREATE FUNCTION resolver_agent.cleanup_orphaned_resources() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    orphans text := 'SELECT record_id AS id, node_group_id AS groupid FROM pg_dist_cleanup';
    clean_up text := 'CALL pg_catalog.citus_cleanup_orphaned_resources()';
    before jsonb;
    after jsonb;
    waiting bigint[];
    left_over bigint[];
BEGIN
    IF to_regproc('pg_catalog.citus_cleanup_orphaned_resources') IS NULL THEN  -- before Citus 11.1
        IF to_regproc('pg_catalog.citus_cleanup_orphaned_shards') IS NULL THEN
            RETURN;  -- before Citus 10.1
        END IF;
        orphans := 'SELECT placementid AS id, groupid FROM pg_dist_placement WHERE shardstate = 4';
        clean_up := 'CALL pg_catalog.citus_cleanup_orphaned_shards()';
    END IF;
    SELECT jsonb_object_agg(node, CASE WHEN success THEN result END) INTO before FROM resolver_agent.reached();
    IF EXISTS (SELECT FROM jsonb_each_text(before) WHERE value NOT LIKE 'primary %')
       OR (SELECT count(value) > count(DISTINCT value) FROM jsonb_each_text(before)) THEN
        RAISE EXCEPTION 'a name leads to a standby, or to a server of another group: %', before;
    END IF;
    EXECUTE format($query$
        SELECT array_agg(id) FROM (%s) AS orphans JOIN pg_dist_node USING (groupid)
         WHERE noderole = 'primary' AND $1 ->> (nodename || ':' || nodeport) IS NULL
    $query$, orphans) INTO waiting USING before;
    EXECUTE clean_up;
    SELECT jsonb_object_agg(node, CASE WHEN success THEN result END) INTO after FROM resolver_agent.reached();
    IF before IS DISTINCT FROM after THEN
        RAISE EXCEPTION 'a name moved during the clean-up: % before, % after', before, after;
    END IF;
    EXECUTE format('SELECT array_agg(id) FROM (%s) AS orphans', orphans) INTO left_over;
    IF NOT coalesce(waiting, '{}') <@ coalesce(left_over, '{}') THEN
        RAISE EXCEPTION 'the clean-up reached a node that answered neither before nor after: %', before;
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA resolver_agent FROM PUBLIC;
GRANT USAGE ON SCHEMA resolver_agent TO resolver_agent_local;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA resolver_agent TO resolver_agent_local;

COMMIT;
