-- On the coordinator: the nodes by name, and a distributed table. It uses only what Citus 10.2 has.

SELECT 'node ' || :'coordinator' || citus_set_coordinator_host(:'coordinator', :port)::text
 WHERE NOT EXISTS (SELECT FROM pg_dist_node WHERE nodename = :'coordinator');

SELECT 'node ' || worker || ' with the number ' || citus_add_node(worker, :port)
  FROM unnest(string_to_array(:'workers', ' ')) AS worker
 WHERE worker NOT IN (SELECT nodename FROM pg_dist_node);

SELECT to_regclass('serving') IS NULL AS missing \gset
\if :missing
    SET citus.shard_count = 4;
    \o /dev/null
    BEGIN;
    SET LOCAL ROLE app;
    CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);
    SELECT create_distributed_table('accounts', 'id');
    INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 1000) AS i;
    -- Shows which servers these rows are read from; each shard has some of them.
    CREATE VIEW serving AS
        SELECT host(inet_server_addr()) AS address, pg_is_in_recovery() AS standby FROM accounts WHERE id <= 100;
    COMMIT;
    \o
    \echo table accounts, view serving
\endif
