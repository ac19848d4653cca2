-- On each primary, in the database postgres: the role of the lab's users, and their database.
-- The output lists what was changed, as for the other files here.

SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') AS missing \gset
\if :missing
    CREATE ROLE app LOGIN PASSWORD :'password';
    \echo role app
\endif

SELECT NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') AS missing \gset
\if :missing
    CREATE DATABASE :"database" OWNER app;
    \echo database :database
\endif

\ir agent.sql

SELECT rolpassword IS NULL AS missing FROM pg_authid WHERE rolname = 'resolver_agent' \gset
\if :missing
    ALTER ROLE resolver_agent PASSWORD :'password';
    \echo password of resolver_agent
\endif
