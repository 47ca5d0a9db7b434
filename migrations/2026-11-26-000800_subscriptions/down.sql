DROP TABLE subscription_secrets, dead_letters, subscription_held, subscription_states;
