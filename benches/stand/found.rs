//! Other archivers that are on the `PATH`.

use std::path::PathBuf;
use std::process::Command;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    PgBackRest,
    Walrus,
}

/// A program that was found.
#[derive(Clone)]
pub struct Found {
    pub kind: Kind,
    pub program: PathBuf,
    /// As it says itself, with its name.
    pub version: String,
}

/// All that are known and there; a line for each that is not.
pub fn peers() -> Vec<Found> {
    let known = [(Kind::PgBackRest, "pgbackrest", "version"), (Kind::Walrus, "walrus", "--version")];
    let found = known.into_iter().filter_map(|(kind, name, version)| {
        let Some(program) = on_path(name) else {
            println!("`{name}` is not on the PATH: the table is without it");
            return None;
        };
        let output = Command::new(&program).arg(version).output().unwrap();
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(Found { kind, program, version })
    });
    found.collect()
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file())
}
