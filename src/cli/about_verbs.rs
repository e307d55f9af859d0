//! The verbs that tell about pgark itself: its settings, completions, the manual page.

use clap::CommandFactory;

use super::args::{Cli, ConfigVerb};
use super::run::{block_on, cannot_print};
use super::sources::Sources;
use super::{exit, output, serve_verb, settings};
use crate::command::{Failure, bounds};

/// `pgark config`
pub fn config(verb: &ConfigVerb, sources: &Sources) -> Result<u8, Failure> {
    let printed = match verb {
        ConfigVerb::Show { origin, json: false } => output::print(&output::config_text(sources, *origin)),
        ConfigVerb::Show { json: true, .. } => output::print_json(&output::config_json(sources)),
        ConfigVerb::Example => output::print(&output::config_example()),
        ConfigVerb::Check => {
            let push = settings::push(sources)?;
            settings::conninfo(sources)?;
            serve_verb::check(sources)?;
            // Files that hold secrets and certificates are read; the store is not asked.
            let opened = bounds::apart(move || async move { Ok(push.repository.open().await?) });
            block_on(bounds::bounded(opened, Some(push.deadline), None))?;
            output::print("the settings are in order\n")
        }
    };
    printed.map(|()| exit::SUCCESS).map_err(cannot_print)
}

/// `pgark completions`
pub fn completions(shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgark", &mut text);
    output::print(&String::from_utf8_lossy(&text)).map(|()| exit::SUCCESS).map_err(cannot_print)
}

/// `pgark man`
pub fn manual() -> Result<u8, Failure> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(Cli::command()).render(&mut text);
    let printed = rendered.and_then(|()| output::print(&String::from_utf8_lossy(&text)));
    printed.map(|()| exit::SUCCESS).map_err(cannot_print)
}
