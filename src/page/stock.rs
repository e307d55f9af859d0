//! The tables of backups and dumps, the newest first.

use maud::{Markup, html};

use super::verdict::{Mood, badge};
use super::words::{ago, count, lasting, said, size, time, time_if};
use crate::command::list::{ListedBackup, ListedState};
use crate::command::overview::Overview;
use crate::repo::DumpSummary;

/// So many of the newest are shown at once, the others on demand.
const NEWEST: usize = 10;

pub(super) fn section(overview: &Overview) -> Markup {
    html! {
        section #backups aria-labelledby="h-backups" {
            h2 #h-backups { "Backups" }
            @if overview.backups.is_empty() {
                p { "None. " code { "pgark basebackup" } " takes one." }
            }
            (in_two(&overview.backups, |backups| backup_table(backups, overview)))
        }
        section #dumps aria-labelledby="h-dumps" {
            h2 #h-dumps { "Dumps" }
            @if overview.dumps.is_empty() {
                p { "None. " code { "pgark dump" } " takes one." }
            }
            (in_two(&overview.dumps, |dumps| dump_table(dumps, overview)))
        }
    }
}

fn in_two<T>(all: &[T], table: impl Fn(&[T]) -> Markup) -> Markup {
    let (older, newest) = all.split_at(all.len().saturating_sub(NEWEST));
    html! {
        @if !newest.is_empty() { (table(newest)) }
        @if !older.is_empty() {
            details { summary { (count(older.len(), "older one", "older ones")) } (table(older)) }
        }
    }
}

fn backup_table(backups: &[ListedBackup], overview: &Overview) -> Markup {
    html! {
        table.cards {
            thead { tr { th scope="col" { "Backup" } th scope="col" { "Stopped" } th scope="col" { "State" } th.n scope="col" { "Took" } th.n scope="col" { "Size" } th.n scope="col" { "Stored" } th scope="col" { "Label" } } }
            tbody {
                @for backup in backups.iter().rev() {
                    @let facts = backup.facts.as_ref();
                    tr {
                        td data-l="Backup" { code { (backup.id) } }
                        td data-l="Stopped" {
                            (time_if(facts.map(|facts| facts.stopped)))
                            @if let Some(facts) = facts { div.note { (ago(facts.stopped, overview.at)) ", timeline " (facts.timeline) } }
                        }
                        td data-l="State" { (state(backup)) (kept(backup)) }
                        td.n data-l="Took" { (facts.map_or("—".to_owned(), |facts| lasting(facts.seconds))) }
                        td.n data-l="Size" { (facts.map_or("—".to_owned(), |facts| size(facts.plain_bytes))) }
                        td.n data-l="Stored" { (size(backup.stored_bytes)) }
                        td data-l="Label" { (said(facts.map(|facts| facts.label.as_str()).unwrap_or_default())) }
                    }
                }
            }
        }
    }
}

fn state(backup: &ListedBackup) -> Markup {
    let bad_pages = backup.facts.as_ref().map_or(0, |facts| facts.bad_pages);
    html! {
        @match backup.state {
            ListedState::Whole if bad_pages > 0 => (badge(Mood::Look, &format!("{bad_pages} wrong pages"))),
            ListedState::Whole => (badge(Mood::Good, "whole")),
            ListedState::Damaged => (badge(Mood::Bad, "damaged")),
            ListedState::Unfinished => span.badge.plain { "unfinished" },
        }
        @if let Some(reason) = &backup.reason { div.note { (said(reason)) } }
    }
}

fn kept(backup: &ListedBackup) -> Markup {
    html! {
        @if backup.kept {
            div.note {
                "kept"
                @if let Some(until) = backup.kept_until { " until " (time(until)) }
                @if let Some(reason) = &backup.kept_reason { ": " (said(reason)) }
            }
        }
    }
}

/// A dump's name, as text.
pub(super) fn dump_name(dump: &DumpSummary) -> String {
    dump.id.to_string()
}

fn dump_table(dumps: &[DumpSummary], overview: &Overview) -> Markup {
    html! {
        table.cards {
            thead { tr { th scope="col" { "Dump" } th scope="col" { "Done" } th scope="col" { "Databases" } th.n scope="col" { "Took" } th.n scope="col" { "Size" } th.n scope="col" { "Stored" } th scope="col" { "Label" } } }
            tbody {
                @for dump in dumps.iter().rev() {
                    tr {
                        td data-l="Dump" { code { (dump_name(dump)) } }
                        td data-l="Done" { (time(dump.stopped)) div.note { (ago(dump.stopped, overview.at)) } }
                        td data-l="Databases" {
                            (said(&dump.databases.join(", ")))
                            @if dump.globals { div.note { "and roles and tablespaces" } }
                        }
                        td.n data-l="Took" { (lasting(dump.stopped.duration_since(dump.started).as_secs_f64())) }
                        td.n data-l="Size" { (size(dump.plain_bytes)) }
                        td.n data-l="Stored" { (size(dump.stored_bytes)) }
                        td data-l="Label" { (said(&dump.label)) }
                    }
                }
            }
        }
    }
}
