-- The database role that resolver-agent observes with. It needs LOGIN and nothing else: what it asks (in recovery?,
-- LSN, timeline, system identifier, start time) any role may know.
--
-- Run it as a superuser on the primary of every group, the coordinator's first: where Citus has carried the role to the
-- workers already, it changes nothing there. Standbys receive the role by replication.
--
--     psql -d postgres -f role.sql
--     psql -d postgres -c '\password resolver_agent'      (asks for it, and keeps it out of the server's log)
--
-- pg_hba.conf, on every node, above any wider line, as the first match counts (with Patroni: postgresql.pg_hba):
--
--     # TYPE  DATABASE  USER            ADDRESS           METHOD
--     local   postgres  resolver_agent                    peer map=resolver_agent
--     host    postgres  resolver_agent  192.168.234.0/24  scram-sha-256
--
-- The first line is for the agent on the same node. It runs as root, which pg_ident.conf lets log in as this role and
-- no other (with Patroni: postgresql.pg_ident):
--
--     # MAPNAME       SYSTEM-USERNAME  PG-USERNAME
--     resolver_agent  root             resolver_agent
--
-- The second is for the agents on the other nodes. They find the password in /etc/resolver-agent.pgpass (owner root,
-- mode 0600):
--
--     *:5432:postgres:resolver_agent:PASSWORD
--
-- Afterwards, on every node: SELECT pg_reload_conf();
--
-- Where CONNECT was revoked from PUBLIC, the role wants it back: GRANT CONNECT ON DATABASE postgres TO resolver_agent;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'resolver_agent') THEN
        CREATE ROLE resolver_agent LOGIN;
        COMMENT ON ROLE resolver_agent IS 'resolver-agent: asks whether a server is in recovery';
    END IF;
END
$$;
