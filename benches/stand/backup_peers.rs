//! How other archivers take a base backup into a local directory and restore it, at our level and with as many jobs.

use std::fs;
use std::path::Path;

use crate::found::{self, Kind};

/// Scripts, run where the data directory `data` is.
pub struct BackupPeer {
    pub title: String,
    pub prepare: String,
    pub backup: String,
    pub restore: String,
}

pub fn all(root: &Path) -> Vec<BackupPeer> {
    found::peers()
        .into_iter()
        .map(|found| {
            let name = found.program.file_name().unwrap();
            // The server's user may not reach it where it is.
            fs::copy(&found.program, root.join(name)).unwrap();
            match found.kind {
                Kind::PgBackRest => pgbackrest(found.version),
                Kind::Walrus => walrus(found.version),
            }
        })
        .collect()
}

/// Without its check that archiving works: the cluster archives with pgark. pgark does wait for its WAL.
fn pgbackrest(title: String) -> BackupPeer {
    let call = "./pgbackrest --config=$PWD/pgbackrest.conf --stanza=bench";
    BackupPeer {
        title,
        prepare: format!(
            "cat > pgbackrest.conf <<END\n[global]\nrepo1-path=$PWD/pgbackrest-repo\nrepo1-retention-full=99\n\
             process-max=2\ncompress-type=zst\ncompress-level=3\nstart-fast=y\nlock-path=$PWD/lock\nlog-path=$PWD/log\n\
             spool-path=$PWD/spool\nlog-level-file=off\n\n[bench]\npg1-path=$PWD/data\npg1-socket-path=$PWD\nEND\n\
             {call} stanza-create"
        ),
        backup: format!("{call} --type=full --no-archive-check backup"),
        restore: format!(
            "rm -rf out && mkdir -m 700 out && {call} --pg1-path=$PWD/out --type=immediate --archive-mode=off restore"
        ),
    }
}

fn walrus(title: String) -> BackupPeer {
    let call = "WALG_FILE_PREFIX=$PWD/walrus-repo WALG_COMPRESSION_METHOD=zstd WALG_COMPRESSION_LEVEL=3 \
                WALG_UPLOAD_CONCURRENCY=2 WALG_DOWNLOAD_CONCURRENCY=2 ./walrus";
    BackupPeer {
        title,
        prepare: "mkdir walrus-repo".into(),
        backup: format!("{call} backup-push $PWD/data 2>walrus.log || (cat walrus.log >&2; false)"),
        restore: format!(
            "rm -rf out && {call} backup-fetch $PWD/out LATEST 2>walrus.log || (cat walrus.log >&2; false)"
        ),
    }
}
