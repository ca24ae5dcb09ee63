-- Statements for `layerrank query`, each below what is right for it. ROOT is the output, OTHER an output beside it, WORK
-- any other folder, PORT that of a server which counts what reaches it.

-- answered: plain select
SELECT count(*) FROM prompts;
-- refused: read_text of a file
SELECT size, left(content,40) FROM read_text('/etc/passwd');
-- refused: read_csv of a file
SELECT * FROM read_csv('/etc/passwd', delim=':', header=false) LIMIT 1;
-- refused: a file as a table
SELECT * FROM 'WORK/some.csv';
-- refused: read_blob
SELECT filename,size FROM read_blob('/etc/hostname');
-- refused: glob
SELECT * FROM glob('/root/*') LIMIT 2;
-- refused: glob of hidden files
SELECT * FROM glob('/root/.*') LIMIT 3;
-- refused: read_json
SELECT * FROM read_json_auto('WORK/some.json');
-- refused: read_parquet of another output
SELECT count(*) FROM read_parquet('OTHER/prompts/**/*.parquet');
-- refused: the environment of the process
SELECT position('LRSECRET' in content::VARCHAR)>0 AS seen FROM read_blob('/proc/self/environ');
-- refused: getenv
SELECT getenv('LRSECRET');
-- refused: COPY to a file
COPY (SELECT 1 a) TO 'WORK/copy.csv';
-- refused: COPY into the root
COPY (SELECT 1 a) TO 'ROOT/prompts/evil.parquet';
-- refused: EXPORT DATABASE
EXPORT DATABASE 'WORK/exp';
-- refused: ATTACH and CREATE
ATTACH 'WORK/a.db' AS x; CREATE TABLE x.t AS SELECT 1;
-- refused: ATTACH of sqlite
ATTACH 'WORK/b.db' (TYPE sqlite);
-- refused: INSTALL
INSTALL httpfs;
-- refused: LOAD from a path
LOAD 'WORK/evil.duckdb_extension';
-- refused: unsigned extensions
SET allow_unsigned_extensions=true;
-- refused: extensions from elsewhere
SET custom_extension_repository='http://127.0.0.1:PORT'; INSTALL httpfs;
-- refused: FORCE INSTALL
FORCE INSTALL evil FROM 'http://127.0.0.1:PORT';
-- refused: read_csv over HTTP
SELECT * FROM read_csv('http://127.0.0.1:PORT/x.csv');
-- refused: read_text over HTTP
SELECT * FROM read_text('http://127.0.0.1:PORT/x.csv');
-- refused: COPY over HTTP
COPY (SELECT 1) TO 'http://127.0.0.1:PORT/put';
-- refused: memory_limit
SET memory_limit='1TB'; SELECT current_setting('memory_limit');
-- refused: temp_directory
SET temp_directory='WORK/tmpd'; SELECT current_setting('temp_directory');
-- refused: a log of queries
SET log_query_path='WORK/qlog'; SELECT 1;
-- refused: a profile in a file
PRAGMA enable_profiling='json'; PRAGMA profiling_output='WORK/prof.json'; SELECT 42;
-- refused: PRAGMA
PRAGMA database_list;
-- refused: two statements
SELECT 1; SELECT 2;
-- refused: DROP VIEW
DROP VIEW prompts; SELECT count(*) FROM prompts;
-- refused: a secret of S3 that stays
CREATE PERSISTENT SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b');
-- refused: a secret of HTTP that stays
CREATE PERSISTENT SECRET h (TYPE http, BEARER_TOKEN 'b');
-- answered: secrets, of which there are none
SELECT count(*) FROM duckdb_secrets();
-- answered: settings
SELECT name,value FROM duckdb_settings() WHERE name IN ('enable_external_access','allow_community_extensions','autoinstall_known_extensions','autoload_known_extensions','lock_configuration','allow_unsigned_extensions','extension_directory','allow_persistent_secrets');
-- refused: a variable of Python
SELECT * FROM arguments;
-- refused: a module of Python
SELECT * FROM views;
-- refused: a small file that expands
SELECT count(*) FROM read_csv('WORK/bomb.csv.gz');
-- refused: a filesystem of Python
SELECT * FROM read_csv('memory://x.csv');
-- refused: sniff_csv
SELECT Delimiter FROM sniff_csv('/etc/passwd');
-- refused: parquet_metadata of another output
SELECT count(*) FROM parquet_metadata('OTHER/prompts/dataset=docstrings/shard-00000.parquet');
-- refused: a command
SELECT system('id');
-- refused: IMPORT DATABASE
IMPORT DATABASE 'WORK/exp';
-- answered: escape codes in a value
SELECT chr(27)||'[31mred'||chr(27)||']0;pwn'||chr(7) AS x;
-- answered: another direction in a value
SELECT chr(8238)||'abc' AS x;
-- answered: many rows
SELECT * FROM range(100000000);

-- refused: the files of another output by way of this one
SELECT * FROM 'ROOT/prompts/../../other/prompts/dataset=d/shard-00000.parquet';
-- refused: a file behind a link in the root
SELECT * FROM read_text('ROOT/link/some.csv');
-- refused: what lies in the root and is no table
SELECT * FROM read_text('ROOT/_layerrank/manifests/prompts/dataset=d.json');
-- refused: what lies in the root, listed
SELECT * FROM glob('ROOT/**');
-- answered: a shard by its name
SELECT count(*) FROM 'ROOT/prompts/dataset=d/shard-00000.parquet';
-- refused: COPY over a shard
COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false);
-- refused: COPY over a shard, on the way
WITH x AS (COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1;
-- refused: COPY over a shard, further down
FROM (WITH x AS (COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false)) FROM x) UNION ALL SELECT 1;
-- refused: COPY over a shard, to be explained
EXPLAIN ANALYZE COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false);
-- refused: COPY over a shard, on the way and to be explained
/* as JSON */ EXPLAIN (ANALYZE, FORMAT json) WITH x AS (COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1;
-- refused: COPY over a shard, of a PIVOT
WITH x AS (COPY (SELECT 1 a) TO 'ROOT/prompts/dataset=d/shard-00000.parquet' (FORMAT parquet, USE_TMP_FILE false)) FROM (PIVOT prompts ON prompt_id USING count(*));
-- refused: COPY over a shard, in a text
SELECT * FROM query('WITH x AS (COPY (SELECT 1 a) TO ''ROOT/prompts/dataset=d/shard-00000.parquet'' (FORMAT parquet, USE_TMP_FILE false)) SELECT 1');
-- refused: COPY over a shard, as JSON in a text
SELECT * FROM Main."JSON_execute_serialized_sql"('{"error":false,"statements":[{"node":{"type":"SELECT_NODE","modifiers":[],"cte_map":{"map":[{"key":"x","value":{"aliases":[],"materialized":"CTE_MATERIALIZE_DEFAULT","key_targets":[],"payload_aggregates":[],"query_node":{"type":"COPY_QUERY_NODE","modifiers":[],"cte_map":{"map":[]},"info":{"info_type":"COPY_INFO","catalog":"","schema":"main","table":"","select_list":[],"is_from":false,"format":"parquet","file_path":"ROOT/prompts/dataset=d/shard-00000.parquet","options":[{"key":"use_tmp_file","value":[{"type":{"id":"BOOLEAN","type_info":null},"is_null":false,"value":false}]}],"select_statement":{"type":"SELECT_NODE","modifiers":[],"cte_map":{"map":[]},"select_list":[{"class":"CONSTANT","type":"VALUE_CONSTANT","alias":"a","query_location":24,"query_location_length":1,"literal":{"kind":"INTEGER","text":"1"}}],"from_table":{"type":"EMPTY","alias":"","sample":null,"query_location":18446744073709551615,"query_location_length":0},"where_clause":null,"group_expressions":[],"group_sets":[],"aggregate_handling":"STANDARD_HANDLING","having":null,"sample":null,"qualify":null},"is_format_auto_detected":false,"file_path_expression":null,"parsed_options":[],"qualified_name":{"path":["main",""]}}}}}]},"select_list":[{"class":"CONSTANT","type":"VALUE_CONSTANT","alias":"","query_location":122,"query_location_length":1,"literal":{"kind":"INTEGER","text":"1"}}],"from_table":{"type":"EMPTY","alias":"","sample":null,"query_location":18446744073709551615,"query_location_length":0},"where_clause":null,"group_expressions":[],"group_sets":[],"aggregate_handling":"STANDARD_HANDLING","having":null,"sample":null,"qualify":null},"named_param_map":[]}]}');
-- refused: a database where a shard is
ATTACH 'ROOT/prompts/dataset=d/shard-00000.parquet' AS x;
-- refused: rows taken out on the way
WITH x AS (DELETE FROM layerrank.runs RETURNING *) FROM x;
-- refused: a log by a function
SELECT * FROM enable_logging(storage='file', storage_path='WORK/logs');
-- refused: a profile by a function
SELECT * FROM enable_profiling(format='json', save_location='WORK/profile.json');
-- refused: a database by a function
SELECT * FROM read_duckdb('WORK/x.db');
-- refused: a table that is made
CREATE TABLE mine AS SELECT 1;
-- refused: a function that is made
CREATE MACRO mine() AS TABLE SELECT * FROM read_text('/etc/passwd');
-- refused: a call
CALL enable_logging(storage='file', storage_path='WORK/logs');
-- refused: a statement for later
PREPARE x AS COPY (SELECT 1) TO 'WORK/later.csv';
-- refused: a comment alone
-- SELECT 1
-- answered: COPY as a word
SELECT 'copy' AS "copy", count(*) AS query FROM prompts WHERE text LIKE '%query(%' OR text = 'COPY x TO y';
-- answered: WITH
WITH query AS (SELECT * FROM prompts) SELECT count(*) FROM query UNION ALL VALUES (1);
-- answered: FROM first
FROM prompts SELECT max(prompt_id);
-- answered: TABLE
TABLE prompts;
-- answered: DESCRIBE
DESCRIBE prompts;
-- answered: SUMMARIZE
SUMMARIZE prompts;
-- answered: SHOW
SHOW TABLES;
-- answered: EXPLAIN
EXPLAIN SELECT 'copy' FROM prompts;
-- answered: EXPLAIN ANALYZE
EXPLAIN ANALYZE SELECT count(*) FROM prompts;
-- answered: PIVOT
PIVOT prompts ON prompt_id USING count(*);
-- answered: PIVOT of named columns, sorted
SELECT * FROM (PIVOT prompts ON prompt_id IN (0, 1) USING count(*)) ORDER BY ALL;
-- refused: a table that is made as it is explained
EXPLAIN ANALYZE CREATE TABLE mine AS SELECT 1;
-- refused: a view dropped as it is explained
EXPLAIN ANALYZE DROP VIEW prompts;
-- answered: EXPLAIN in a form
EXPLAIN (FORMAT json) SELECT 'a copy', * FROM prompts;
-- answered: PIVOT in brackets
(PIVOT prompts ON prompt_id USING count(*));
