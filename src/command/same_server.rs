//! Files of one server with the label of another look like a backup and are none: whether both are of the same server is asked
//! before the start, after it, and once more at the end.
//!
//! A primary and its standbys share system identifier and major, and may have been started in the same moment. What tells them
//! apart is `postmaster.pid`, and `pg_control`: the start of a backup leaves its checkpoint there.

use std::path::Path;

use super::failure::{Failure, FailureKind};
use crate::disk::DataDir;
use crate::disk::data_dir::{ClusterFacts, Postmaster};
use crate::postgres::backup_files::CONTROL_FILE;
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::control_details::{ClusterState, ControlDetails};
use crate::postgres::{Lsn, PgMajor, TimelineId};
use crate::server::backup_session::ServerAtBackup;

/// Seconds between the two moments at the start of a server that its file and its SQL tell.
const START_UP: u64 = 10;

/// Before anything is begun.
pub(super) fn check_before(
    server: &ServerAtBackup,
    data_dir: &DataDir,
    facts: ClusterFacts,
    details: &ControlDetails,
) -> Result<(), Failure> {
    match difference(server, facts, details.state, data_dir.postmaster().as_ref()) {
        None => Ok(()),
        Some(why) => Err(refused(data_dir.path(), &why)),
    }
}

fn difference(
    server: &ServerAtBackup,
    facts: ClusterFacts,
    state: ClusterState,
    postmaster: Option<&Postmaster>,
) -> Option<String> {
    let Some(postmaster) = postmaster else {
        return Some("no server runs there".to_owned());
    };
    if server.system_id != facts.ident.system_id {
        return Some(format!("it has {}, the files are of {}", server.system_id, facts.ident.system_id));
    }
    if PgMajor::try_from(server.version / 10_000).ok() != Some(facts.ident.major) {
        return Some(format!("it is not a PostgreSQL {}", facts.ident.major));
    }
    if postmaster.start.abs_diff(server.postmaster_start) > START_UP {
        return Some("it was started at another time".to_owned());
    }
    if postmaster.port.is_some_and(|port| port != server.port) {
        return Some(format!("it has the port {}, `postmaster.pid` another", server.port));
    }
    if let (Some(here), Some(theirs)) = (&postmaster.socket_directory, &server.socket_directories)
        && is_elsewhere(here, theirs)
    {
        return Some("its sockets are in another directory".to_owned());
    }
    match server.in_recovery == (state == ClusterState::ArchiveRecovery) {
        true => None,
        false if server.in_recovery => Some(format!("it is a standby, and by `{CONTROL_FILE}` the files are not")),
        false => Some(format!("it is no standby, and by `{CONTROL_FILE}` the files are one's")),
    }
}

/// Whether the first of the directories that a server has set is surely not `here`.
fn is_elsewhere(here: &str, theirs: &str) -> bool {
    let first = theirs.split(',').next().unwrap_or_default().trim().trim_matches('"');
    let real = |path: &str| Path::new(path).canonicalize().ok();
    let plain = first.starts_with('/') && !first.contains('"');
    // The same directory may be written in two ways; in another container neither may be there.
    plain && first != here && real(first).zip(real(here)).is_some_and(|(first, here)| first != here)
}

/// When the server says that the backup has begun: its checkpoint must stand in the files.
pub(super) fn check_started(data_dir: &DataDir, started: Lsn, details: &ControlDetails) -> Result<(), Failure> {
    match details.redo >= started {
        true => Ok(()),
        false => Err(refused(
            data_dir.path(),
            &format!("its backup starts at {started}, the last checkpoint in `{CONTROL_FILE}` at {}", details.redo),
        )),
    }
}

fn refused(path: &Path, why: &str) -> Failure {
    let message = format!("the server that answers does not run in `{}`: {why}", path.display());
    Failure::new(FailureKind::Usage, message)
        .with_hint("`--pgdata` and `--conninfo` must mean the same server, on this host")
}

/// At the end: `pg_control`, which was read just before the stop, against the label and the stop.
///
/// A standby may have followed its primary to another timeline meanwhile. Its files need WAL of the new one then, while the label
/// and all that is planned from it tell of the old one.
pub(super) fn check_ended(
    label: &BackupLabel,
    stop: Lsn,
    timeline: TimelineId,
    details: &ControlDetails,
) -> Result<(), Failure> {
    let wrong = |why: String| Failure::new(FailureKind::Server, why);
    if timeline != label.timeline {
        let (from, to) = (label.timeline.get(), timeline.get());
        return Err(wrong(format!("the backup began on timeline {from}, and the server is on timeline {to} now"))
            .with_hint("run the same command again; a standby must have replayed a checkpoint of the new timeline"));
    }
    if details.checkpoint < label.checkpoint_lsn || details.redo < label.start_lsn {
        let (has, needs) = (details.checkpoint, label.checkpoint_lsn);
        return Err(wrong(format!("`{CONTROL_FILE}` has a checkpoint at {has}, before that of the backup at {needs}")));
    }
    if details.min_recovery_point > stop {
        let needs = details.min_recovery_point;
        return Err(wrong(format!(
            "by `{CONTROL_FILE}` the files need WAL up to {needs}, but the backup ended at {stop}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::control_details::{RecordedSettings, WalLevel};
    use crate::postgres::control_file::ControlFile;
    use crate::postgres::{ClusterIdent, SegmentSize, SystemId};

    fn server() -> ServerAtBackup {
        ServerAtBackup {
            version: 150_018,
            system_id: SystemId(7),
            in_recovery: false,
            archives: true,
            postmaster_start: 1000,
            port: 5432,
            socket_directories: Some("/tmp, /var/tmp".to_owned()),
        }
    }

    fn facts() -> ClusterFacts {
        let control = ControlFile {
            system_id: SystemId(7),
            timeline: TimelineId::FIRST,
            segment_size: SegmentSize::DEFAULT,
            in_archive_recovery: false,
        };
        ClusterFacts { ident: ClusterIdent { system_id: SystemId(7), major: 15.try_into().unwrap() }, control }
    }

    fn postmaster() -> Postmaster {
        Postmaster { start: 1000, port: Some(5432), socket_directory: Some("/tmp".to_owned()) }
    }

    fn details() -> ControlDetails {
        ControlDetails {
            catalog_version: 1,
            state: ClusterState::Production,
            checkpoint: Lsn(200),
            redo: Lsn(100),
            min_recovery_point: Lsn::INVALID,
            block_size: 8192,
            relation_segment_blocks: 131_072,
            page_checksums: true,
            settings: RecordedSettings {
                wal_level: WalLevel::Replica,
                max_connections: 1,
                max_worker_processes: 1,
                max_wal_senders: 1,
                max_prepared_transactions: 1,
                max_locks_per_transaction: 1,
            },
        }
    }

    #[test]
    fn each_sign_of_another_server_is_enough() {
        let judge = |server: ServerAtBackup, postmaster: Option<Postmaster>, state| {
            difference(&server, facts(), state, postmaster.as_ref()).unwrap_or_default()
        };
        let (running, recovering) = (ClusterState::Production, ClusterState::ArchiveRecovery);
        assert_eq!(judge(server(), Some(postmaster()), running), "");
        let standby = || ServerAtBackup { in_recovery: true, ..server() };
        assert_eq!(judge(standby(), Some(postmaster()), recovering), "");
        for (other, said) in [
            (ServerAtBackup { system_id: SystemId(8), ..server() }, "the files are of"),
            (ServerAtBackup { version: 140_001, ..server() }, "PostgreSQL 15"),
            (ServerAtBackup { postmaster_start: 1011, ..server() }, "another time"),
            (ServerAtBackup { port: 5433, ..server() }, "the port 5433"),
            (ServerAtBackup { socket_directories: Some("/".into()), ..server() }, "another directory"),
            (standby(), "it is a standby"),
        ] {
            let found = judge(other, Some(postmaster()), running);
            assert!(found.contains(said), "{said}: {found}");
        }
        assert!(judge(server(), Some(postmaster()), recovering).contains("it is no standby"));
        assert!(judge(server(), None, running).contains("no server runs"));
    }

    #[test]
    fn what_cannot_be_told_is_no_sign() {
        for known in
            [None, Some(""), Some("run"), Some("@/abstract"), Some("\"/a,b\""), Some("/tmp/../tmp"), Some("/not/here")]
        {
            let server = ServerAtBackup { socket_directories: known.map(str::to_owned), ..server() };
            let found = difference(&server, facts(), ClusterState::Production, Some(&postmaster()));
            assert_eq!(found, None, "{known:?}");
        }
        let bare = Postmaster { port: None, socket_directory: None, ..postmaster() };
        assert_eq!(difference(&server(), facts(), ClusterState::Production, Some(&bare)), None);
    }

    #[test]
    fn the_files_must_have_the_checkpoint_of_the_label() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("global")).unwrap();
        std::fs::write(place.path().join("global/pg_control"), b"").unwrap();
        let data_dir = DataDir::at(place.path().to_owned()).unwrap().unwrap();
        assert!(check_started(&data_dir, Lsn(100), &details()).is_ok());
        let failure = check_started(&data_dir, Lsn(101), &details()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
    }

    #[test]
    fn the_end_must_fit_the_label() {
        let label = BackupLabel::parse(
            b"START WAL LOCATION: 0/64 (file 000000010000000000000000)\nCHECKPOINT LOCATION: 0/C8\nBACKUP METHOD: streamed\n\
              BACKUP FROM: standby\nSTART TIME: now\nLABEL: x\nSTART TIMELINE: 1\n",
        )
        .unwrap();
        let judge = |details, timeline| {
            check_ended(&label, Lsn(300), TimelineId::new(timeline).unwrap(), &details)
                .map_err(|failure| failure.message)
        };
        assert_eq!(judge(details(), 1), Ok(()));
        assert_eq!(judge(ControlDetails { min_recovery_point: Lsn(300), ..details() }, 1), Ok(()));
        assert!(judge(details(), 2).unwrap_err().contains("on timeline 2 now"));
        for wrong in [
            ControlDetails { checkpoint: Lsn(199), ..details() },
            ControlDetails { redo: Lsn(99), ..details() },
            ControlDetails { min_recovery_point: Lsn(301), ..details() },
        ] {
            assert!(judge(wrong, 1).unwrap_err().contains(CONTROL_FILE));
        }
    }
}
