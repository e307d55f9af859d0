//! pgark: PostgreSQL's `archive_command` and `restore_command`, and what an operator needs around them.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pgark::cli::run::run(std::env::args_os().collect()))
}
