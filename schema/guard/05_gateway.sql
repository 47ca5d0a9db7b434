-- What the write gateway has answered, so that a request sent twice is written once. The row is part
-- of the same transaction as the writes: both are there or neither is, whatever crashes when.
--
-- Each login sees and keeps only its own keys, by these two functions alone.

CREATE TABLE IF NOT EXISTS cadastre.gateway_request (
  login  name NOT NULL,
  key    text NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 255),
  digest bytea NOT NULL CHECK (octet_length(digest) = 32),
  answer text CHECK (octet_length(answer) <= 1048576),
  at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (login, key)
);
CREATE INDEX IF NOT EXISTS gateway_request_at ON cadastre.gateway_request (at);
ALTER TABLE cadastre.gateway_request OWNER TO cadastre;

-- Takes a key for the request with this digest: fresh when nobody had. Waits while another
-- transaction is at work under the same key. Keys are forgotten after a day.
CREATE OR REPLACE FUNCTION cadastre.gateway_begin(
  of_key text, of_digest bytea, OUT fresh boolean, OUT same boolean, OUT answered text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  DELETE FROM cadastre.gateway_request WHERE (login, key) IN (
    SELECT login, key FROM cadastre.gateway_request
    WHERE at < now() - interval '24 hours' LIMIT 100 FOR UPDATE SKIP LOCKED);
  INSERT INTO cadastre.gateway_request (login, key, digest) VALUES (session_user, of_key, of_digest)
    ON CONFLICT DO NOTHING;
  fresh := FOUND;
  SELECT digest = of_digest, answer INTO same, answered
    FROM cadastre.gateway_request WHERE login = session_user AND key = of_key;
END $$;
ALTER FUNCTION cadastre.gateway_begin(text, bytea) OWNER TO cadastre;

-- Keeps the answer to the request that took the key in this transaction.
CREATE OR REPLACE FUNCTION cadastre.gateway_end(of_key text, to_answer text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  UPDATE cadastre.gateway_request SET answer = to_answer
  WHERE login = session_user AND key = of_key AND answer IS NULL
$$;
ALTER FUNCTION cadastre.gateway_end(text, text) OWNER TO cadastre;
