# What people and CI call. `make demo` and `make test` install what is missing first.
.DEFAULT_GOAL := help
CARGO ?= cargo

.PHONY: help setup demo test test-pg check fmt lint doc deny machete typos schema bench soak fuzz clean

help: ## Lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## Installs the PostgreSQL server package and curl where they are missing
	@scripts/setup

demo: setup ## Tells the whole story on a private PostgreSQL (ARGS=--once to end after it)
	$(CARGO) run --quiet --locked -- demo $(ARGS)

test: ## Runs every test
	@scripts/setup tests
	@scripts/run-tests $(CARGO)

test-pg: ## Runs what depends on PostgreSQL's version on the oldest and the newest, fetched from npm
	@scripts/test-postgres $(CARGO) 14 18

check: fmt lint doc deny machete typos ## Formatting, lints, documentation, licences, spelling

fmt:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --quiet

deny:
	@scripts/tool cargo-deny cargo deny --offline check bans licenses sources

machete:
	@scripts/tool cargo-machete cargo machete

typos:
	@scripts/tool typos typos

schema: ## Regenerates schema/ from the code
	$(CARGO) run --quiet --locked -- schema --write schema

bench: setup ## Measures the workloads (ARGS=--full at the sizes of the targets, ARGS="--only W1" for one)
	$(CARGO) bench --locked --bench workloads -- $(ARGS)

soak: setup ## Breaks everything at random and compares, for SECONDS (600), or again what failed (SEED=7)
	CADASTRE_ORACLE_SECONDS=$(or $(SECONDS),600) CADASTRE_ORACLE_SEED=$(SEED) \
	  $(CARGO) test --locked --test main -- --nocapture whatever_happens_a_subscriber_has

fuzz: ## Fuzzes the decoder and the encoder of values, a minute each (needs cargo-fuzz)
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run decode -- -max_total_time=60
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run value -- -max_total_time=60
	RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run message -- -max_total_time=60

clean:
	$(CARGO) clean
