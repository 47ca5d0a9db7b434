DROP TABLE subscriptions;
DROP TABLE violations;
ALTER TABLE datasets DROP CONSTRAINT datasets_owner_is_present;
DROP TABLE ownership_periods;
DROP TABLE datasets;
DROP TABLE service_roles;
DROP TABLE sources;
DROP TABLE services;
DROP TABLE registry_state;
