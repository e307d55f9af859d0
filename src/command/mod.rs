//! The verbs, one a file: each takes its settings, does its work and returns a report.
//!
//! Commands print nothing, read no flags or environment and never exit: `cli` does that.

pub mod alert;
pub mod alert_channels;
pub mod alert_mail;
pub mod alert_message;
pub mod alert_program;
pub mod alert_rules;
mod alert_runs;
mod alert_settings;
pub mod alert_webhook;
pub mod archive_command;
pub mod backfill;
mod backup_archiving;
pub mod backup_copy;
pub mod backup_finish;
pub mod backup_parts;
pub mod backup_plan;
mod backup_wal;
pub mod basebackup;
pub mod bounds;
pub mod check;
pub mod check_archiver;
mod check_receiver;
pub mod check_server;
pub mod check_store;
pub mod check_switch;
pub mod checklist;
pub mod clock;
pub mod drill;
mod drill_checklist;
mod drill_checks;
mod drill_dump;
pub mod drill_html;
pub mod drill_keeper;
mod drill_note;
pub mod drill_report;
mod drill_restored;
mod drill_space;
pub mod drill_sql;
mod drill_tablespaces;
mod drill_target;
pub mod dump;
mod dump_feed;
mod dump_file;
mod dump_globals;
mod dump_local;
mod dump_program;
pub mod dump_restore;
pub mod expire;
pub mod expire_delete;
mod expire_records;
pub mod expire_report;
pub mod failure;
pub mod forecast;
mod from_tail;
mod holding;
pub mod init;
pub mod keep;
mod keep_dump;
pub mod list;
pub mod list_dumps;
mod local_backup;
pub mod look_ahead;
pub mod metrics;
pub mod noted_verbs;
pub mod overview;
#[cfg(test)]
mod overview_sample;
pub mod pace;
mod plan_warnings;
pub mod prefetch;
pub mod prefetch_helper;
pub mod progress;
mod receive_endings;
mod receive_feedback;
mod receive_gap;
mod receive_halt;
pub mod receive_progress;
mod receive_segment;
mod receive_slot;
mod receive_start;
mod receive_store;
mod receive_stream;
mod receive_uploads;
mod remote_backup;
mod remote_copy;
mod remote_files;
mod remote_parts;
pub mod restore;
pub mod restore_files;
mod restore_lease;
mod restore_place;
mod restore_settings;
mod restore_unarchived;
pub mod run_note;
mod same_server;
mod server_manifest;
pub mod show;
pub mod status;
mod status_dumps;
pub mod status_expiry;
mod status_lost;
pub mod status_server;
mod status_sizes;
pub mod stop;
pub mod store_clock;
mod tries;
pub mod verify;
mod verify_deep;
mod verify_dumps;
mod verify_missing;
pub mod verify_report;
pub mod verify_sample;
mod verify_tails;
pub mod wal_fetch;
pub mod wal_push;
pub mod wal_receive;
pub mod ways;

pub use failure::{Failure, FailureKind};

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::repo::{ClusterName, Repository, Writer};
use crate::storage::gated::GatedStore;
use crate::storage::limit::Limit;
use crate::storage::s3_client::S3Settings;
use crate::storage::{Location, ObjectStore, StoreError, local, s3};

/// Where a repository is.
#[derive(Clone, Debug)]
pub struct RepositorySettings {
    /// The store.
    pub store: StoreSettings,
    /// The name of the cluster in it.
    pub cluster: ClusterName,
}

/// Which store, and how to reach it.
#[derive(Clone, Debug)]
pub enum StoreSettings {
    /// S3 or a look-alike.
    S3(Box<S3Settings>),
    /// A directory.
    Local(PathBuf),
}

/// Requests of one process that are under way at once.
const REQUESTS: usize = 32;

impl RepositorySettings {
    /// What tells this repository from others, without asking it.
    pub fn place(&self) -> String {
        let store = match &self.store {
            StoreSettings::S3(s3) => {
                format!("s3 {} {} {}", s3.endpoint.as_deref().unwrap_or_default(), s3.bucket, s3.prefix)
            }
            StoreSettings::Local(root) => format!("directory {}", root.display()),
        };
        format!("{store} {}", self.cluster)
    }

    /// The words of a call of pgark for this repository. An endpoint and credentials are settings.
    pub fn call(&self) -> Vec<String> {
        let location = match &self.store {
            StoreSettings::S3(s3) => Location::S3 { bucket: s3.bucket.clone(), prefix: s3.prefix.clone() },
            StoreSettings::Local(root) => Location::Local { root: root.clone() },
        };
        let words = ["pgark", "--repo", &location.to_string(), "--cluster", &self.cluster.to_string()];
        words.map(str::to_owned).to_vec()
    }

    /// Sets the store up; nothing is asked of it yet.
    pub async fn open(&self) -> Result<Repository, StoreError> {
        let store: Arc<dyn ObjectStore> = match &self.store {
            StoreSettings::S3(settings) => Arc::new(s3::S3Store::new(S3Settings::clone(settings)).await?),
            StoreSettings::Local(root) => Arc::new(local::LocalStore::new(root.clone())),
        };
        // Whatever a command does at once, the store and the file descriptors have a limit.
        let store = Arc::new(GatedStore::new(store, Limit::of(REQUESTS)));
        Ok(Repository::new(store, self.cluster.clone()))
    }
}

/// What a command gets from outside besides its settings: time and place.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// When the command began.
    pub now: Timestamp,
    /// Who runs it.
    pub writer: Writer,
}
