# The two commands of a newcomer are `make demo` and `make test`: both install what is missing, as root or with sudo.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Servers of the tests live in memory where there is room: they are bound by fsync.
ROOMY := $(shell [ -w /dev/shm ] && [ "$$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 3000000 ] && echo /dev/shm)
# Whoever starts this in the background may have us ignore SIGINT, which tests send.
TEST_ENV := env --default-signal $(if $(ROOMY),TMPDIR=$(ROOMY))

.PHONY: help demo test test-matrix page-test lint bench prepare clean

help:
	@echo 'make demo         archive, lose a table, restore to just before: in a throw-away PostgreSQL'
	@echo 'make test         lints and all tests, on the PostgreSQL of this system'
	@echo 'make test-matrix  the tests with servers, on PostgreSQL 14 to 18; 14 has no programs of its own there: its files are'
	@echo '                  judged by the pg_verifybackup and pg_checksums of 15 or 16'
	@echo 'make page-test    the page of `report` in headless Chromium, which it installs: console, width, screenshots in target/page'
	@echo 'make bench        time, memory and requests, each beside its floor and beside other archivers: docs/performance.md'

prepare:
	@tests/setup/install-build-tools.sh
	@tests/setup/install-postgres.sh

demo: prepare
	cargo build
	@tests/demo.sh target/debug/pgark

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --quiet

test: prepare
	@tests/setup/install-moto.sh
	@tests/setup/install-promtool.sh
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	$(TEST_ENV) cargo test --lib --test it

test-matrix: prepare
	@tests/setup/install-postgres-matrix.sh
	$(TEST_ENV) PGARK_TEST_MAJORS="14 15 16 17 18" cargo test --test it -- pitr postgres:: check_and_init last_question_of_a_promotion backups:: backup_kinds backup_targets backup_links gaps_behind_targets remote_backups wal_receive streamed_servers::with dumps:: --skip reaching_postgres

page-test: prepare
	@tests/setup/install-browser.sh
	cargo test --lib page::tests::pages_for_the_browser
	@tests/page.sh target/page

bench: prepare
	@tests/setup/install-bench-tools.sh
	cargo build --release
	cargo bench --profile dev --config profile.dev.opt-level=3 --bench pieces
	cargo bench --profile dev --bench wal --bench ahead --bench backup --bench stream

clean:
	cargo clean
