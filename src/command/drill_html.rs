//! The report of a drill as one page: no script, nothing from elsewhere, light and dark, for screens and paper.

use std::fmt::Write as _;

use jiff::{Timestamp, Unit};

use super::check::Level;
use super::drill_report::{DrillReport, Outcome, level_word, outcome_word};
use super::forecast::about;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #57606a; --good: #116329; --bad: #a40e26; --fair: #7d4e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; --soft: #9da7b1; --good: #56d364; --bad: #ff8182; --fair: #e3b341; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; } td.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .fair { color: var(--fair); } .soft { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1rem 0; } .figures b { display: block; font-size: 1.6rem; }
ul { list-style: none; padding: 0; } li { margin: .5rem 0; }
";

/// Makes it.
pub fn page(report: &DrillReport) -> String {
    let mut page = String::new();
    let title = format!("Drill {} of {}: {}", report.kind.word(), report.repository, report.verdict());
    let class = match report.level {
        Level::Ok => "good",
        Level::Warning => "fair",
        Level::Unknown | Level::Fail => "bad",
    };
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         </head>\n<body>\n<h1>Drill <code>{}</code>: <span class=\"{class}\">{}</span></h1>\n<p class=\"soft\">{}, from {} to {}, by {}</p>\n",
        escaped(&title),
        report.kind.word(),
        report.verdict(),
        escaped(&report.repository),
        second(report.began),
        second(report.ended),
        escaped(&report.writer),
    );
    reasons(&mut page, report);
    figures(&mut page, report);
    checklist(&mut page, report);
    page.push_str("<h2>What was restored</h2>\n<table>\n");
    for (name, value) in report.facts() {
        let _ = writeln!(page, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escaped(&value));
    }
    page.push_str("</table>\n");
    steps(&mut page, report);
    page.push_str("</body>\n</html>\n");
    page
}

fn second(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}

fn reasons(page: &mut String, report: &DrillReport) {
    if report.reasons.is_empty() {
        return;
    }
    page.push_str("<h2>Why</h2>\n<ul>\n");
    for reason in &report.reasons {
        let class = if reason.level == Level::Warning { "fair" } else { "bad" };
        let hint = reason.hint.as_deref().map(|hint| format!("<br><span class=\"soft\">{}</span>", escaped(hint)));
        let _ = writeln!(
            page,
            "<li><b class=\"{class}\">{} ({})</b>: {}{}</li>",
            reason.word,
            level_word(reason.level),
            escaped(&reason.message),
            hint.unwrap_or_default()
        );
    }
    page.push_str("</ul>\n");
}

fn figures(page: &mut String, report: &DrillReport) {
    let figures = &report.figures;
    let mut shown = Vec::new();
    let beside = |limit: Option<std::time::Duration>, measured: f64| match limit {
        Some(limit) if measured > limit.as_secs_f64() => {
            format!("<span class=\"bad\">over the objective of {}</span>", about(limit.as_secs_f64()))
        }
        Some(limit) => format!("<span class=\"good\">within the objective of {}</span>", about(limit.as_secs_f64())),
        None => "<span class=\"soft\">no objective is set</span>".to_owned(),
    };
    if figures.total_seconds > 0.0 {
        let total = figures.total_seconds;
        shown.push(("Time to restore (RTO)", format!("{total:.1} s"), beside(report.objectives.rto, total)));
    }
    if let Some(loss) = figures.loss_seconds {
        shown.push(("Age of the newest commit (RPO)", format!("{loss:.0} s"), beside(report.objectives.rpo, loss)));
    }
    page.push_str("<div class=\"figures\">\n");
    for (name, value, note) in shown {
        let _ = writeln!(page, "<div>{name}<b>{value}</b>{note}</div>");
    }
    page.push_str("</div>\n");
}

fn checklist(page: &mut String, report: &DrillReport) {
    page.push_str("<h2>Checklist</h2>\n<ul>\n");
    for point in &report.checklist {
        let (sign, class, word) = if point.ticked { ("☑", "good", "done") } else { ("☐", "bad", "not done") };
        let _ = writeln!(
            page,
            "<li><span class=\"{class}\" role=\"img\" aria-label=\"{word}\">{sign}</span> <b>{}</b> <span class=\"soft\">{}</span></li>",
            escaped(point.item),
            escaped(&point.detail)
        );
    }
    page.push_str("</ul>\n");
}

fn steps(page: &mut String, report: &DrillReport) {
    page.push_str(
        "<h2>Steps</h2>\n<table>\n<tr><th>Step</th><th>Outcome</th><th>Time</th><th>What was seen</th></tr>\n",
    );
    for step in &report.steps {
        let class = match step.outcome {
            Outcome::Passed => "good",
            Outcome::Failed => "bad",
            Outcome::Skipped => "fair",
        };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"{class}\">{}</td><td class=\"number\">{:.1} s</td><td>{}</td></tr>",
            escaped(&step.name),
            outcome_word(step.outcome),
            step.seconds,
            escaped(&step.detail)
        );
    }
    page.push_str("</table>\n");
}

/// Names of tables and words of servers are anybody's.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::drill_report::{DrillKind, Reason, Step};
    use crate::command::overview::Objectives;
    use crate::repo::run_record::DrillFigures;

    #[test]
    fn what_others_wrote_does_not_become_markup() {
        let evil = "<script>alert('x')</script> & \"y\"".to_owned();
        let report = DrillReport {
            schema: 1,
            kind: DrillKind::Full,
            level: Level::Fail,
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            writer: evil.clone(),
            repository: evil.clone(),
            backup: None,
            target: None,
            seed: None,
            promised: None,
            reached: None,
            figures: DrillFigures { total_seconds: 7.0, ..DrillFigures::default() },
            objectives: Objectives { rpo: None, rto: Some(std::time::Duration::from_secs(3)) },
            steps: vec![Step { name: evil.clone(), outcome: Outcome::Failed, seconds: 1.0, detail: evil.clone() }],
            reasons: vec![Reason::failed("assertion", evil.clone()).with_hint(evil)],
            checklist: Vec::new(),
            report: None,
            kept: None,
        };
        let page = page(&report);
        assert!(!page.contains("<script") && page.matches("&lt;script&gt;alert(&#39;x&#39;)").count() >= 6, "{page}");
        assert!(page.contains("over the objective of 3 s") && !page.contains("http"));
    }
}
