DROP TABLE guard_gaps;
DROP TABLE guard_baselines;
DROP TABLE findings;
