//! What `archive_command` would do, read by the same parser and the same sources as a call of this binary.

use std::path::Path;

use clap::Parser;

use super::args::{Cli, Verb};
use super::settings;
use super::sources::Sources;
use crate::command::archive_command::Call;

/// Reads the words behind the program. Of the environment what `check` has itself, and what the command adds.
pub fn read(words: &[String], added: &[(String, String)]) -> Result<Call, &'static str> {
    let words = std::iter::once("pgark").chain(words.iter().map(String::as_str));
    let cli = Cli::try_parse_from(words).map_err(|error| match error.use_stderr() {
        true => "its words are not those of `pgark wal-push %p %f`",
        false => "it asks for help or for the version",
    })?;
    let Verb::WalPush(push) = &cli.verb else {
        return Err("its verb is not `wal-push`");
    };
    if push.backfill {
        return Err("`--backfill` is not for archive_command");
    }
    let path = push.path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let own = super::run::environment().filter(|(name, _)| !added.iter().any(|(other, _)| other == name));
    let environment: Vec<_> = own.chain(added.iter().cloned()).collect();
    // A relative path starts in the data directory, not here.
    let config = cli.global.config.as_deref();
    let sources = match config.is_none_or(Path::is_absolute) {
        true => Sources::read(cli.flag_values(), environment.into_iter(), config),
        false => return Ok(Call { path, name: push.name.clone(), repository: None }),
    };
    let sources = sources.map_err(|_| "its settings cannot be read")?;
    Ok(Call { path, name: push.name.clone(), repository: settings::repository(&sources).ok() })
}
