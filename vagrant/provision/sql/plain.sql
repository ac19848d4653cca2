-- On the coordinator without Citus: a table whose partitions are on the workers, which it connects to by name.

SELECT to_regclass('serving') IS NULL AS missing \gset
\if :missing
    BEGIN;
    CREATE EXTENSION postgres_fdw;
    -- postgres_fdw has no flush: a kept connection would stay on the server that the name resolved to before.
    SELECT format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw '
                  'OPTIONS (host %L, port %L, dbname %L, keep_connections %L)',
                  worker, worker, :'port', current_database(), 'off'),
           format('GRANT USAGE ON FOREIGN SERVER %I TO app', worker),
           format('CREATE USER MAPPING FOR app SERVER %I OPTIONS (user %L, password %L)', worker, 'app', :'password')
      FROM unnest(string_to_array(:'workers', ' ')) AS worker \gexec
    SET LOCAL ROLE app;
    CREATE TABLE accounts (id bigint NOT NULL, balance bigint NOT NULL) PARTITION BY HASH (id);
    SELECT format('CREATE FOREIGN TABLE %I PARTITION OF accounts FOR VALUES WITH (MODULUS %s, REMAINDER %s) '
                  'SERVER %I OPTIONS (table_name %L)', 'accounts_' || worker, count(*) OVER (), i - 1, worker, 'accounts'),
           format('CREATE FOREIGN TABLE %I (address text, standby boolean) SERVER %I OPTIONS (table_name %L)',
                  'serving_' || worker, worker, 'serving')
      FROM unnest(string_to_array(:'workers', ' ')) WITH ORDINALITY AS workers (worker, i) \gexec
    SELECT 'CREATE VIEW serving AS ' || string_agg(format('TABLE %I', 'serving_' || worker), ' UNION ALL ')
      FROM unnest(string_to_array(:'workers', ' ')) AS worker \gexec
    INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 1000) AS i;
    COMMIT;
    \echo tables accounts and serving
\endif
