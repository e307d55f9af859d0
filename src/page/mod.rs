//! The page: all that is known of a repository, for eyes. One HTML document without anything from elsewhere, and without a script.
//!
//! Pure: from an [`Overview`] and a [`View`] to text. `report` writes it into a file, `serve` sends it. Whatever comes from elsewhere
//! (labels, messages, names) is hostile: `words` makes text of it.

mod alerts;
mod axis;
mod drawing;
mod drills;
mod growth;
mod runs;
#[cfg(test)]
mod sample;
mod stock;
mod style;
mod time_line;
mod verdict;
mod way_back;
mod words;

pub use style::CONTENT_SECURITY_POLICY;
pub use way_back::asked;

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::command::checklist::Point;
use crate::command::overview::Overview;
use crate::command::ways::Way;

/// What the page shows besides the overview.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// How pgark is called for this repository: the program and its flags, a word each, not yet quoted. No secrets.
    pub program: Vec<String>,
    /// Moments, and how to go back to them.
    pub ways: Vec<Way>,
    /// Whether there is somebody who answers the form.
    pub form: bool,
    /// What the form asked for; its ways are among `ways`.
    pub asked: Option<Result<Timestamp, String>>,
    /// The newest drill's checklist, if its report can be read.
    pub checklist: Vec<Point>,
    /// Why nothing was seen since.
    pub trouble: Option<String>,
    /// Load the page again after so many seconds.
    pub refresh_seconds: Option<u32>,
}

/// The document.
pub fn page(overview: &Overview, view: &View) -> String {
    let title = format!("pgark: {}", words::harmless(&overview.status.repository));
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(*CONTENT_SECURITY_POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta name="robots" content="noindex";
                @if let Some(seconds) = view.refresh_seconds { meta http-equiv="refresh" content=(seconds); }
                title { (title) }
                style { (PreEscaped(style::STYLE.as_str())) }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                div.in {
                    (head(overview))
                    (contents(overview, view))
                    main #main tabindex="-1" {
                        @if let Some(trouble) = &view.trouble { (alerts::blind(overview, trouble)) }
                        (verdict::section(overview))
                        (alerts::section(overview))
                        (time_line::section(overview))
                        (way_back::section(overview, view))
                        (verdict::objectives(overview))
                        (drills::section(overview, view))
                        (growth::section(overview))
                        (runs::section(overview))
                        (stock::section(overview))
                    }
                    footer {
                        p.note { "Made by pgark " (env!("CARGO_PKG_VERSION")) " at " (words::time(overview.at)) ", from what the repository holds." }
                    }
                }
            }
        }
    };
    let mut text = document.into_string();
    text.push('\n');
    text
}

fn head(overview: &Overview) -> Markup {
    let status = &overview.status;
    html! {
        header {
            h1 { (words::message(&status.repository)) }
            p.note {
                "PostgreSQL cluster " (words::said(&status.cluster)) ", generation " (status.generation)
                "; as of " (words::time(overview.at))
            }
        }
    }
}

fn contents(overview: &Overview, view: &View) -> Markup {
    let alerts = overview.alerts.len();
    html! {
        nav aria-label="Contents" {
            ul {
                li { a href="#alerts" { "Alerts" @if alerts > 0 { " (" (alerts) ")" } } }
                li { a href="#time-line" { "Time line" } }
                li { a href="#restore" { "Restore: " (way_back::open_ways(view)) } }
                li { a href="#objectives" { "Objectives" } }
                li { a href="#drills" { "Drills" } }
                li { a href="#growth" { "Stored" } }
                li { a href="#runs" { "Runs" } }
                li { a href="#backups" { "Backups (" (overview.backups.len()) ")" } }
                li { a href="#dumps" { "Dumps (" (overview.dumps.len()) ")" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// One tag a line.
    fn lined(page: &str) -> String {
        page.replace("><", ">\n<")
    }

    fn pages() -> [(&'static str, String); 6] {
        let live = |asked: Result<Timestamp, String>| View { form: true, asked: Some(asked), ..sample::view() };
        [
            ("everything", page(&sample::everything(), &sample::view())),
            ("month", page(&sample::with_texts("before the upgrade"), &sample::view())),
            ("calm", page(&sample::calm(), &View { checklist: vec![], ..sample::view() })),
            ("nothing", page(&sample::nothing(), &View::default())),
            ("asked", page(&sample::everything(), &live(Ok(sample::now() - jiff::SignedDuration::from_hours(1))))),
            ("wrong", page(&sample::everything(), &live(Err(format!("`{}` is no time", sample::HOSTILE))))),
        ]
    }

    #[test]
    fn it_is_the_same_every_time() {
        let pages = pages();
        assert_eq!(pages, super::tests::pages());
        for (name, page) in pages.iter().filter(|(name, _)| ["everything", "nothing"].contains(name)) {
            insta::assert_snapshot!(*name, lined(page));
        }
    }

    /// For `make page-test`, which opens them in a browser.
    #[test]
    fn pages_for_the_browser() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
        std::fs::create_dir_all(&directory).unwrap();
        for (name, page) in pages() {
            std::fs::write(directory.join(format!("{name}.html")), page).unwrap();
        }
    }

    #[test]
    fn hostile_text_stays_text() {
        for (name, page) in pages() {
            assert!(!page.contains("<script") && !page.contains("onload=x>") && !page.contains('\u{202e}'), "{name}");
            assert_eq!(page.matches("</style>").count(), 1, "{name}");
            assert_eq!(page.matches("<style>").count(), 1, "{name}");
        }
        assert!(pages()[0].1.matches("&lt;script&gt;").count() >= 5, "labels, reasons, databases, messages, alerts");
    }

    #[test]
    fn links_and_labels_lead_somewhere() {
        for (name, page) in pages() {
            let values = |attribute: &str| -> Vec<String> {
                let begin = format!(" {attribute}=\"");
                page.split(&begin).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
            };
            let ids = values("id");
            let known: BTreeSet<&String> = ids.iter().collect();
            let twice: Vec<&String> =
                known.iter().filter(|id| ids.iter().filter(|other| other == *id).count() > 1).copied().collect();
            assert!(twice.is_empty(), "{name}: {twice:?}");
            let links = values("href").into_iter().map(|link| link.trim_start_matches('#').to_owned());
            let labels = ["aria-labelledby", "aria-describedby"].into_iter().flat_map(values);
            let labels: Vec<String> =
                labels.flat_map(|ids| ids.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
            let fills = page.split("url(#").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned());
            for target in links.chain(labels).chain(fills) {
                assert!(known.contains(&target), "{name}: nothing is called {target}");
            }
        }
    }

    #[test]
    fn headings_are_in_order() {
        for (name, page) in pages() {
            let levels: Vec<u32> =
                page.match_indices("<h").filter_map(|(at, _)| page[at + 2..].chars().next()?.to_digit(10)).collect();
            assert_eq!((levels[0], levels.iter().filter(|level| **level == 1).count()), (1, 1), "{name}");
            assert!(levels.windows(2).all(|two| two[1] <= two[0] + 1), "{name}: {levels:?}");
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        for (name, page) in pages() {
            for word in ["http:", "https:", "src=", "<link", "@import", "javascript:", "style=\""] {
                assert!(!page.contains(word), "{name} has {word}");
            }
        }
    }
}
