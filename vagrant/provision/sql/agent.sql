-- Creates the agent's role and functions, unless those of this checkout are there already.

SELECT obj_description(to_regnamespace('resolver_agent'), 'pg_namespace') IS DISTINCT FROM :'stamp' AS missing \gset
\if :missing
    \ir ../../../systemd/role.sql
    SET citus.enable_ddl_propagation = off;
    COMMENT ON SCHEMA resolver_agent IS :'stamp';
    \echo role.sql
\endif
