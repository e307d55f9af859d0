//! What a base backup takes from a data directory, and what it leaves.
//!
//! Paths are relative to the data directory, and lead through `pg_tblspc/<oid>` into tablespaces:
//! as `backup_manifest` names them. Reading directories and links is the caller's.

use std::path::{Component, Path};

use super::PgMajor;
use super::relation_file::{RelationFile, Unlogged, is_temporary_relation};

/// The control file: a backup copies it last, and a restore puts it into place last.
pub const CONTROL_FILE: &str = "global/pg_control";

/// What a base backup does with a file or a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is copied; of a directory, whatever its own entries' verdicts say.
    Copy,
    /// The directory is kept, as an empty one, even where it is a link to somewhere else.
    SkipContents,
    /// It is left out, with all below it.
    Skip,
}

/// The rules for one cluster.
///
/// They are those of `excludeFiles`, `excludeDirContents` and `sendDir` in `backup/basebackup.c` (14:
/// `replication/basebackup.c`), which did not change from PostgreSQL 13 to 18, but for two
/// things. PostgreSQL looks at names alone; here a name counts only where PostgreSQL itself puts it, so that
/// a user's `notes/backup_label` is copied. And pgark's own left-overs are passed over.
#[derive(Clone, Debug)]
pub struct BackupFiles {
    major: PgMajor,
    version_directory: String,
}

/// Made or emptied at each start of the server.
const EMPTIED: [&[u8]; 7] =
    [b"pg_dynshmem", b"pg_notify", b"pg_replslot", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans"];

/// What a cluster is made of, besides what is emptied and `pg_wal` (`subdirs` in `initdb.c`).
const OWN: [&str; 9] =
    ["base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_stat", "pg_tblspc", "pg_twophase", "pg_xact"];

/// Of the running server, of another backup, or half written.
const LEFT_OUT: [&[u8]; 7] = [
    b"backup_label",
    b"backup_manifest",
    b"current_logfiles.tmp",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"tablespace_map",
];

impl BackupFiles {
    /// The rules for a cluster of this version; `pg_control` has the number of its catalogs.
    pub fn new(major: PgMajor, catalog_version: u32) -> Self {
        // `TABLESPACE_VERSION_DIRECTORY` in `common/relpath.h`.
        Self { major, version_directory: format!("PG_{major}_{catalog_version}") }
    }

    /// The directory within each tablespace that is this cluster's. After `pg_upgrade` there may be
    /// another beside it, of the old cluster.
    pub fn version_directory(&self) -> &str {
        &self.version_directory
    }

    /// The empty directories that a backup has within `pg_wal`, whether the cluster has them or not.
    pub fn directories_in_pg_wal(&self) -> &'static [&'static str] {
        if self.major.get() < 17 { &["archive_status"] } else { &["archive_status", "summaries"] }
    }

    /// What becomes of this path. `unlogged` are the unlogged relations of the directory that it lies
    /// in: see [`Unlogged::among`], which may be given the names of any directory.
    pub fn verdict(&self, path: &Path, unlogged: &Unlogged) -> Verdict {
        let names = names(path);
        let passing = |name: &&[u8]| name.starts_with(b"pgsql_tmp") || name.starts_with(b".pgark-");
        if names.iter().any(passing) || self.is_foreign(&names) {
            return Verdict::Skip;
        }
        match names[..] {
            [b"pg_wal"] => Verdict::SkipContents,
            [b"pg_wal", ..] => Verdict::Skip,
            [top] if EMPTIED.contains(&top) => Verdict::SkipContents,
            [top, ..] if EMPTIED.contains(&top) => Verdict::Skip,
            [top] if LEFT_OUT.contains(&top) => Verdict::Skip,
            [ref directory @ .., name] if self.holds_relations(directory) => {
                relation_verdict(path, name, directory != [b"global"], unlogged)
            }
            _ => Verdict::Copy,
        }
    }

    /// Whether this path is one of PostgreSQL's own, where a backup must have everything. The rest are settings, logs and what
    /// users put there.
    pub fn is_vital(path: &Path) -> bool {
        match names(path)[..] {
            [b"PG_VERSION"] => true,
            [top, ..] => OWN.iter().any(|own| own.as_bytes() == top),
            [] => false,
        }
    }

    /// The directories that every cluster has, and every backup must have, empty or not.
    pub fn own_directories() -> impl Iterator<Item = &'static str> {
        OWN.into_iter()
    }

    /// Which part of which relation this file is: such a file is made of pages, which have
    /// checksums where the cluster has them. `None` for all other files.
    pub fn relation_file(&self, path: &Path) -> Option<RelationFile> {
        match names(path)[..] {
            [ref directory @ .., _] if self.holds_relations(directory) => RelationFile::parse(path.file_name()?),
            _ => None,
        }
    }

    /// What lies in `pg_tblspc` and belongs to no tablespace, or in a tablespace and to no such cluster.
    fn is_foreign(&self, names: &[&[u8]]) -> bool {
        match names {
            [b"pg_tblspc", oid] => !is_number(oid),
            [b"pg_tblspc", oid, version, ..] => !is_number(oid) || *version != self.version_directory.as_bytes(),
            _ => false,
        }
    }

    fn holds_relations(&self, directory: &[&[u8]]) -> bool {
        match directory {
            [b"global"] => true,
            [b"base", database] => is_number(database),
            [b"pg_tblspc", _, _, database] => !self.is_foreign(directory) && is_number(database),
            _ => false,
        }
    }
}

/// For a name in a directory of relations: `global`, or the part of a database in a tablespace.
fn relation_verdict(path: &Path, name: &[u8], of_database: bool, unlogged: &Unlogged) -> Verdict {
    let file_name = path.file_name().unwrap_or_default();
    let temporary = of_database && is_temporary_relation(file_name);
    let reset = RelationFile::parse(file_name).is_some_and(|file| unlogged.resets(file));
    // The cache of the catalogs, and its temporary files, which end in a process identifier.
    if name.starts_with(b"pg_internal.init") || temporary || reset { Verdict::Skip } else { Verdict::Copy }
}

fn is_number(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

fn names(path: &Path) -> Vec<&[u8]> {
    let normal = |component| match component {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        _ => None,
    };
    path.components().filter_map(normal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(major: u32) -> BackupFiles {
        BackupFiles::new(PgMajor::try_from(major).unwrap(), 202_209_061)
    }

    fn verdict(path: &str) -> Verdict {
        rules(15).verdict(Path::new(path), &Unlogged::default())
    }

    #[test]
    fn copies_what_a_cluster_is_made_of() {
        for path in [
            "",
            "PG_VERSION",
            "base",
            "base/5",
            "base/5/PG_VERSION",
            "base/5/1259",
            "base/5/1259_fsm",
            "base/5/pg_filenode.map",
            "global",
            "global/pg_control",
            "global/1262",
            "pg_xact/0000",
            "pg_multixact/offsets/0000",
            "pg_logical/replorigin_checkpoint",
            "pg_stat/pgstat.stat",
            "pg_twophase",
            "pg_commit_ts",
            "pg_tblspc",
            "pg_tblspc/16384",
            "pg_tblspc/16384/PG_15_202209061",
            "pg_tblspc/16384/PG_15_202209061/5/16390",
            "postgresql.auto.conf",
            "current_logfiles",
            "backup_label.old",
            "log/postgresql.log",
            "standby.signal",
            "notes/backup_label",
            "notes/pg_wal",
            "notes/t3_16384",
            "global/t3_16384",
            "my_pgsql_tmp",
        ] {
            assert_eq!(verdict(path), Verdict::Copy, "{path}");
        }
    }

    #[test]
    fn data_is_told_from_what_a_cluster_can_do_without() {
        for path in ["PG_VERSION", "base", "base/5", "base/5/1259", "global", "pg_multixact/members", "pg_tblspc/1/x"] {
            assert!(BackupFiles::is_vital(Path::new(path)), "{path}");
        }
        for path in ["", "postgresql.conf", "pg_hba.conf", "log", "pg_log", "pg_wal", "pg_stat_tmp", "notes/base"] {
            assert!(!BackupFiles::is_vital(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn keeps_the_emptied_directories() {
        for path in
            EMPTIED.map(|name| String::from_utf8_lossy(name).into_owned()).iter().map(String::as_str).chain(["pg_wal"])
        {
            assert_eq!(verdict(path), Verdict::SkipContents, "{path}");
            assert_eq!(verdict(&format!("{path}/a/b")), Verdict::Skip, "{path}");
        }
        assert_eq!(rules(14).directories_in_pg_wal(), ["archive_status"]);
        assert_eq!(rules(16).directories_in_pg_wal(), ["archive_status"]);
        assert_eq!(rules(17).directories_in_pg_wal(), ["archive_status", "summaries"]);
    }

    #[test]
    fn leaves_out_what_is_of_the_running_server_only() {
        for path in [
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "postmaster.pid",
            "postmaster.opts",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp12.0",
            "base/pgsql_tmp/a",
            "pg_tblspc/16384/PG_15_202209061/pgsql_tmp",
            "global/pg_internal.init",
            "base/5/pg_internal.init",
            "base/5/pg_internal.init.1234",
            "pg_tblspc/16384/PG_15_202209061/5/pg_internal.init",
            "base/5/t3_16384",
            "base/5/t3_16384_vm.1",
            "pg_tblspc/16384/PG_15_202209061/5/t3_16384",
            "pg_tblspc/16384/PG_14_202107181",
            "pg_tblspc/16384/PG_14_202107181/5/1259",
            "pg_tblspc/16384/lost+found",
            "pg_tblspc/notes",
            ".pgark-incoming-x",
            "base/5/.pgark-tmp-1",
        ] {
            assert_eq!(verdict(path), Verdict::Skip, "{path}");
        }
    }

    #[test]
    fn of_unlogged_relations_only_the_init_fork() {
        let unlogged = Unlogged::among(["10", "10_init", "11"]);
        for directory in ["base/5", "pg_tblspc/16384/PG_15_202209061/5"] {
            let of = |name: &str| rules(15).verdict(&Path::new(directory).join(name), &unlogged);
            assert_eq!([of("10"), of("10_fsm"), of("10.1")], [Verdict::Skip; 3]);
            assert_eq!([of("10_init"), of("11"), of("11_init")], [Verdict::Copy; 3]);
        }
        assert_eq!(rules(15).verdict(Path::new("pg_xact/10"), &unlogged), Verdict::Copy);
    }

    #[test]
    fn pages_are_in_relation_files_only() {
        let file = |path: &str| rules(15).relation_file(Path::new(path)).map(|file| (file.number, file.segment));
        assert_eq!(file("base/5/1259"), Some((1259, 0)));
        assert_eq!(file("base/5/1259_vm.2"), Some((1259, 2)));
        assert_eq!(file("global/1262_fsm"), Some((1262, 0)));
        assert_eq!(file("pg_tblspc/16384/PG_15_202209061/5/16390.7"), Some((16390, 7)));
        for path in [
            "",
            "1259",
            "base/1259",
            "base/5",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/6/7",
            "base/x/1259",
            "global/pg_control",
            "global/pg_internal.init",
            "pg_xact/0001",
            "pg_xact/1000",
            "pg_multixact/members/1000",
            "pg_tblspc/16384/PG_14_202107181/5/1259",
            "pg_tblspc/16384/PG_15_202209061/1259",
        ] {
            assert_eq!(file(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn below_what_is_skipped_all_is_skipped(path in "(base|global|pg_wal|pg_tblspc|pg_notify|pgsql_tmp|[a-z])(/[0-9a-z_]{1,3}){0,4}", name in "[0-9a-z]{1,3}") {
            let parent = Path::new(&path);
            if verdict(&path) != Verdict::Copy && !rules(15).holds_relations(&names(parent.parent().unwrap())) {
                prop_assert_eq!(verdict(&format!("{path}/{name}")), Verdict::Skip);
            }
        }
    }
}
