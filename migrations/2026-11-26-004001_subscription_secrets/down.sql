-- What is sealed is of no use to a program that does not know of it: new secrets are made there.
DELETE FROM subscription_secrets WHERE sealed;
ALTER TABLE subscription_secrets DROP COLUMN sealed;
