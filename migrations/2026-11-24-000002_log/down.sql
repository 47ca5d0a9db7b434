DROP TABLE log_chunks;
DROP TABLE log_ends;
