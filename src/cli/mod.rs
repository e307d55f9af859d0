//! Words in, words out: flags, file and environment become settings; outcomes become text and exit codes.
//!
//! No logic lives here: a command that another program would want to call is in `command`.

pub mod about_verbs;
pub mod alert_settings;
pub mod alert_verb;
mod archive_command;
pub mod args;
pub mod backup_verbs;
pub mod check_verb;
pub mod config_file;
mod drill_anew;
pub mod drill_verb;
mod dump_text;
pub mod dump_verbs;
pub mod exit;
pub mod expire_verbs;
pub mod init;
pub mod keys;
pub mod logging;
pub mod look_args;
pub mod look_text;
pub mod look_verbs;
pub mod metrics_verb;
pub mod monitor_verb;
pub mod output;
pub mod prefetch_verb;
mod progress_line;
pub mod receive_verb;
pub mod report_verb;
mod restore_args;
pub mod restore_command;
pub mod run;
pub mod serve_jobs;
pub mod serve_page;
pub mod serve_verb;
pub mod settings;
pub mod sources;
pub mod timetable;
pub mod values;
mod verb_word;
pub mod verify_verb;
pub mod watch;
