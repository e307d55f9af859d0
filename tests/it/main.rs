//! The integration tests: the real pgark against real PostgreSQL servers and a real HTTP S3 endpoint.
//!
//! `double` is that endpoint, `postgres` the servers, `ledger` the judge of what a restored server must hold, `program`
//! runs pgark, `receiver_witness` watches what is streamed, `manifest_draft` writes manifests that pgark would not, `data_dir` makes small data directories for tests that need no
//! server, `post_box` takes alerts, and `watched` is a store in memory that asks a test before each request. Everything else is tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::panic)]

mod data_dir;
mod double;
mod ledger;
mod manifest_draft;
mod post_box;
mod postgres;
mod program;
mod repository;
mod watched;

mod ahead_on_servers;
mod alerts;
mod backup_faults;
mod backup_kinds;
mod backup_lacks;
mod backup_leases;
mod backup_links;
mod backup_targets;
mod backup_waits;
mod backups;
mod canary;
mod channel_binding;
mod check_and_init;
mod chosen_backups;
mod conformance;
mod documents;
mod drills;
mod dump_faults;
mod dumps;
mod dumps_kept;
mod exit_table;
mod expire;
mod expire_meanwhile;
mod expire_on_servers;
mod fetch_faults;
mod gaps_behind_targets;
mod hostile_dumps;
mod hostile_manifests;
mod house;
mod kills;
mod live_tail;
mod look;
mod look_ahead;
mod lost_wal;
mod monitor;
mod moved_repositories;
mod page;
mod pitr;
mod prefetch;
mod push_faults;
mod races;
mod reaching_postgres;
mod reaching_s3;
mod receive_doubts;
mod receiver_chaos;
mod receiver_witness;
mod recovery_stops;
mod remembered_place;
mod remote_backups;
mod requests;
mod restore_faults;
mod restore_kills;
mod restore_over;
mod restore_refusals;
mod restore_syscalls;
mod rotten_pages;
mod run_notes;
mod second_opinion;
mod shutdown;
mod streamed_servers;
mod tails_on_standbys;
mod target_session;
mod unreachable_targets;
mod verify;
mod verify_deep;
mod wal_index;
mod wal_receive;
mod watch;
mod words;
mod wrong_servers;
