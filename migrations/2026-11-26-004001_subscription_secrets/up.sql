-- Secrets of webhooks are sealed with a key that is not in the database. Those that are there already
-- are sealed when the server next looks after their subscription.
ALTER TABLE subscription_secrets ADD COLUMN sealed boolean NOT NULL DEFAULT false;
