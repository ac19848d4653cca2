-- On each worker without Citus: its partition of the table, and a view that shows which server a read reaches.

SELECT to_regclass('serving') IS NULL AS missing \gset
\if :missing
    SET ROLE app;
    BEGIN;
    CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
    CREATE VIEW serving AS SELECT host(inet_server_addr()) AS address, pg_is_in_recovery() AS standby;
    COMMIT;
    \echo table accounts, view serving
\endif
