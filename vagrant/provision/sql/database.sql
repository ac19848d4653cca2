-- On each primary, in the lab's database.

\if :citus
    SELECT NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') AS missing \gset
    \if :missing
        CREATE EXTENSION citus;
        \echo extension citus
    \endif
\endif

\ir agent.sql
