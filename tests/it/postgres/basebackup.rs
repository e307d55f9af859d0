//! PostgreSQL's own base backup, without WAL: the reference that tests compare with and the start of recoveries that
//! need no backup of ours.

use std::path::{Path, PathBuf};

use super::{
    cluster::Cluster,
    installation::{Installation, run},
    workplace::Scratch,
};

/// A copy of a data directory as pg_basebackup made it, with `backup_label` and `backup_manifest`. Removed on drop.
pub struct BaseBackup {
    directory: PathBuf,
    installation: &'static Installation,
    _home: Scratch,
}

impl Cluster {
    /// Takes a base backup. The server waits until the backup's WAL is archived, so archiving must work.
    pub fn base_backup(&self) -> BaseBackup {
        let home = Scratch::new("b");
        let directory = home.path().join("data");
        let mut command = self.installation().basebackup_program().command();
        command.arg("-d").arg(self.endpoint().conninfo()).arg("-D").arg(&directory);
        command.args(["-X", "none", "-c", "fast", "--no-sync", "--manifest-checksums=SHA256"]);
        run(&mut command).unwrap_or_else(|error| panic!("{error}\n{}", self.endpoint().log_tail()));
        BaseBackup { directory, installation: self.installation(), _home: home }
    }
}

impl BaseBackup {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn backup_label(&self) -> String {
        std::fs::read_to_string(self.directory.join("backup_label")).expect("read backup_label")
    }

    pub fn backup_manifest(&self) -> String {
        std::fs::read_to_string(self.directory.join("backup_manifest")).expect("read backup_manifest")
    }

    pub fn verify(&self) -> Result<(), String> {
        verify_directory(self.installation, &self.directory)
    }
}

/// pg_verifybackup, without WAL, on a directory that was not started yet.
pub fn verify_directory(installation: &Installation, directory: &Path) -> Result<(), String> {
    let program = installation.verifybackup_program();
    run(program.command().args(["--no-parse-wal", "--quiet"]).arg(directory)).map(drop)
}
