//! What `archive_command` does, read as the shell reads it: does it run this binary, does PostgreSQL get its exit code, and
//! does it archive into the place that `check` looks at?
//!
//! Nothing of the command is repeated but the path of its program: the rest may hold secrets.

use std::path::{Path, PathBuf};

use super::check::{Finding, Level};
use super::{RepositorySettings, StoreSettings};

const CHECK: &str = "archive_command";
const HINT: &str = "set `archive_command = 'pgark wal-push %p %f'`, with the binary's whole path, and reload";

/// Reads words as the binary itself would: those behind the program, with these variables besides those of `check`.
pub type ReadWords = fn(words: &[String], environment: &[(String, String)]) -> Result<Call, &'static str>;

/// A call of `wal-push`.
#[derive(Clone, Debug)]
pub struct Call {
    /// The file.
    pub path: Option<String>,
    /// The name that is given to it.
    pub name: Option<String>,
    /// Where to; `None` where the words and what `check` knows do not say.
    pub repository: Option<RepositorySettings>,
}

/// Judges the command. Blocking: it looks at the program's file and at the settings file.
pub fn judge(text: &str, binary: Option<&Path>, own: &RepositorySettings, read: ReadWords) -> Finding {
    let fail = |message: String, hint: &str| Finding::not_ok(CHECK, Level::Fail, message, hint);
    let warning = |message: String, hint: &str| Finding::not_ok(CHECK, Level::Warning, message, hint);
    // `(disabled)` is what PostgreSQL shows while `archive_mode` is off.
    if text.trim().is_empty() || text == "(disabled)" {
        return fail("archive_command is not set, or archive_mode is off".to_owned(), HINT);
    }
    let line = Line::read(text);
    let command = Command::of(&line.words);
    let shown = shown(&command.program);
    let same = binary.is_some_and(|binary| is_same(&command.program, binary));
    let is_pgark = same || Path::new(&command.program).file_name().is_some_and(|name| name == "pgark");
    let pushes = command.arguments.iter().any(|word| matches!(word.as_str(), "wal-push" | "archive-push"));
    if !is_pgark && !pushes {
        return fail(format!("archive_command runs {shown}, not `pgark wal-push`"), HINT);
    }
    match line.oddity {
        Oddity::Unreadable => return fail("archive_command has a quote that is not closed".to_owned(), HINT),
        Oddity::Operator => {
            let message = "archive_command holds `|`, `&`, `;` or a second line: PostgreSQL may be told of success \
                           though nothing was archived";
            return fail(message.to_owned(), "let it be nothing but `pgark wal-push %p %f`");
        }
        Oddity::Expansion => {
            let message = "archive_command holds `$`, `` ` ``, or brackets: what the shell makes of it cannot be told";
            return warning(message.to_owned(), "write out what it stands for");
        }
        Oddity::None | Oddity::And | Oddity::Redirection => {}
    }
    if is_pgark {
        let call = match read(&command.arguments, &command.environment) {
            Ok(call) => call,
            Err(why) => return fail(format!("archive_command does not archive: {why}"), HINT),
        };
        if let Some(finding) = judge_call(&call, own) {
            return finding;
        }
    }
    if !same {
        return warning(format!("archive_command runs {shown}, which is not known to be this binary"), HINT);
    }
    match line.oddity {
        Oddity::And => warning(
            "archive_command runs more than pgark (`&&`)".to_owned(),
            "let it be nothing but `pgark wal-push %p %f`",
        ),
        Oddity::Redirection => warning(
            "archive_command sends pgark's messages elsewhere".to_owned(),
            "without `>` or `<` they stand in the server's log, where they are looked for",
        ),
        _ => Finding::ok(CHECK, "archive_command runs this binary"),
    }
}

fn judge_call(call: &Call, own: &RepositorySettings) -> Option<Finding> {
    let fail = |message: String, hint: &str| Some(Finding::not_ok(CHECK, Level::Fail, message, hint));
    if !call.path.as_deref().is_some_and(|path| path.contains("%p")) {
        return fail("archive_command does not say which file: `%p` is missing".to_owned(), HINT);
    }
    if call.name.as_deref().is_some_and(|name| name != "%f") {
        return fail("archive_command gives every file the same name: take `%f`".to_owned(), HINT);
    }
    match &call.repository {
        Some(repository) if is_same_place(repository, own) => None,
        Some(repository) => fail(
            format!("archive_command archives into {}; `check` looks at {}", place(repository), place(own)),
            "call `check` with the flags of archive_command, or let both read the same settings file",
        ),
        None => Some(Finding::not_ok(
            CHECK,
            Level::Warning,
            "archive_command does not say where to, unless the server's environment does",
            "give it `--config` or `--repo`, or write the URL into /etc/pgark/pgark.toml",
        )),
    }
}

fn is_same_place(one: &RepositorySettings, other: &RepositorySettings) -> bool {
    let same_store = match (&one.store, &other.store) {
        (StoreSettings::S3(one), StoreSettings::S3(other)) => {
            (&one.bucket, &one.prefix, &one.endpoint) == (&other.bucket, &other.prefix, &other.endpoint)
        }
        (StoreSettings::Local(one), StoreSettings::Local(other)) => one == other,
        _ => false,
    };
    same_store && one.cluster == other.cluster
}

fn place(repository: &RepositorySettings) -> String {
    let cluster = &repository.cluster;
    match &repository.store {
        StoreSettings::S3(settings) => {
            let prefix = settings.prefix.as_str().trim_end_matches('/');
            let endpoint = settings.endpoint.as_deref().map(|at| format!(" at {at}")).unwrap_or_default();
            format!("s3://{}/{prefix}{endpoint}, cluster `{cluster}`", settings.bucket)
        }
        StoreSettings::Local(root) => format!("file://{}, cluster `{cluster}`", root.display()),
    }
}

/// Only an absolute path can be compared: PostgreSQL has another `PATH` and another working directory.
fn is_same(program: &str, binary: &Path) -> bool {
    let program = PathBuf::from(program.replace("%%", "%"));
    program.is_absolute() && std::fs::canonicalize(program).is_ok_and(|program| program == binary)
}

/// A program's path, if it looks like one.
fn shown(program: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'+');
    match !program.is_empty() && program.len() <= 200 && program.bytes().all(plain) {
        true => format!("`{program}`"),
        false => "something else".to_owned(),
    }
}

/// A simple command of the shell.
struct Command {
    environment: Vec<(String, String)>,
    program: String,
    arguments: Vec<String>,
}

impl Command {
    fn of(words: &[String]) -> Self {
        let mut environment = Vec::new();
        let mut rest = words.iter();
        let program = loop {
            match rest.next() {
                None => break String::new(),
                Some(word) if matches!(word.as_str(), "env" | "/usr/bin/env" | "exec") => {}
                Some(word) => match assignment(word) {
                    Some(pair) => environment.push(pair),
                    None => break word.clone(),
                },
            }
        };
        Command { environment, program, arguments: rest.cloned().collect() }
    }
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    named.then(|| (name.to_owned(), value.to_owned()))
}

/// What is more in a command line than words; the worst counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Oddity {
    None,
    /// `<`, `>`: the words stay.
    Redirection,
    /// `&&`: a failure stays one.
    And,
    /// `$`, backquotes, brackets: the words are not what they seem.
    Expansion,
    /// `|`, `||`, `;`, `&`, a newline: another exit code may be PostgreSQL's.
    Operator,
    /// A quote is open.
    Unreadable,
}

/// A command line in words, by the rules of "Quoting" and "Token Recognition" of POSIX's shell; up to the first operator.
struct Line {
    words: Vec<String>,
    oddity: Oddity,
}

impl Line {
    fn read(text: &str) -> Self {
        let mut line = Line { words: Vec::new(), oddity: Oddity::None };
        let mut word: Option<String> = None;
        // The word behind a redirection is a file.
        let mut target = false;
        let mut chars = text.trim().chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                ' ' | '\t' => line.end(&mut word, &mut target),
                '#' if word.is_none() => break,
                '\'' => {
                    let inside = word.get_or_insert_default();
                    if !copy_until(&mut chars, '\'', inside, &mut line.oddity) {
                        line.note(Oddity::Unreadable);
                    }
                }
                '"' => {
                    let inside = word.get_or_insert_default();
                    if !copy_until(&mut chars, '"', inside, &mut line.oddity) {
                        line.note(Oddity::Unreadable);
                    }
                }
                '\\' => word.get_or_insert_default().extend(chars.next()),
                '<' | '>' => {
                    line.note(Oddity::Redirection);
                    if word.as_deref().is_some_and(|word| word.bytes().all(|b| b.is_ascii_digit())) {
                        word = None;
                    }
                    line.end(&mut word, &mut target);
                    while chars.next_if(|c| matches!(c, '<' | '>' | '&')).is_some() {}
                    target = true;
                }
                '&' if chars.peek() == Some(&'&') => {
                    line.end(&mut word, &mut target);
                    line.note(if chars.any(|c| matches!(c, '|' | ';' | '\n')) {
                        Oddity::Operator
                    } else {
                        Oddity::And
                    });
                    break;
                }
                '|' | '&' | ';' | '\n' => {
                    line.note(Oddity::Operator);
                    break;
                }
                '$' | '`' | '(' | ')' | '{' | '}' | '*' | '?' | '[' => {
                    line.note(Oddity::Expansion);
                    word.get_or_insert_default().push(c);
                }
                c => word.get_or_insert_default().push(c),
            }
        }
        line.end(&mut word, &mut target);
        line
    }

    fn end(&mut self, word: &mut Option<String>, target: &mut bool) {
        let Some(word) = word.take() else { return };
        if !std::mem::take(target) {
            self.words.push(word);
        }
    }

    fn note(&mut self, oddity: Oddity) {
        self.oddity = self.oddity.max(oddity);
    }
}

/// Copies up to the closing quote; `false` if there is none.
fn copy_until(chars: &mut impl Iterator<Item = char>, quote: char, into: &mut String, oddity: &mut Oddity) -> bool {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return true,
            '\\' if quote == '"' => into.extend(chars.next()),
            '$' | '`' if quote == '"' => {
                *oddity = (*oddity).max(Oddity::Expansion);
                into.push(c);
            }
            c => into.push(c),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> RepositorySettings {
        RepositorySettings { store: StoreSettings::Local("/srv/archive".into()), cluster: "main".parse().unwrap() }
    }

    /// A reader as simple as can be: `wal-push PATH [NAME]`, `--repo`, `--help`.
    fn read(words: &[String], environment: &[(String, String)]) -> Result<Call, &'static str> {
        let mut root = environment.iter().find(|(name, _)| name == "ROOT").map(|(_, value)| value.clone());
        let mut places = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--help" => return Err("it asks for help"),
                "--repo" => root = words.next().cloned(),
                "wal-push" => {}
                _ => places.push(word.clone()),
            }
        }
        let store = StoreSettings::Local(root.unwrap_or_else(|| "/srv/archive".to_owned()).into());
        let repository = Some(RepositorySettings { store, cluster: "main".parse().unwrap() });
        Ok(Call { path: places.first().cloned(), name: places.get(1).cloned(), repository })
    }

    fn judged(text: &str) -> Finding {
        let binary = std::fs::canonicalize("/bin/sh").unwrap();
        judge(text, Some(&binary), &own(), read)
    }

    #[test]
    fn what_archives_here_is_told_from_what_does_not() {
        for (text, level, said) in [
            ("/bin/sh wal-push %p %f", Level::Ok, "runs this binary"),
            ("'/bin/sh' wal-push \"%p\" %f", Level::Ok, ""),
            ("env A=b X='y z' /bin/sh wal-push %p", Level::Ok, ""),
            ("exec /bin/sh wal-push %p %f # why", Level::Ok, ""),
            ("ROOT=/srv/archive /bin/sh wal-push %p %f", Level::Ok, ""),
            ("ROOT=/elsewhere /bin/sh wal-push %p %f", Level::Fail, "archives into file:///elsewhere, cluster `main`"),
            ("/bin/sh --repo /elsewhere wal-push %p %f", Level::Fail, "`check` looks at file:///srv/archive"),
            ("/bin/sh wal-push %f", Level::Fail, "`%p` is missing"),
            ("/bin/sh wal-push %p segment", Level::Fail, "the same name"),
            ("/bin/sh wal-push %p %f --help", Level::Fail, "it asks for help"),
            ("/bin/sh wal-push %p %f || true", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f; true", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f | logger", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f &", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f && true; true", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f\ntrue", Level::Fail, "may be told of success"),
            ("/bin/sh wal-push %p %f && touch /tmp/x", Level::Warning, "`&&`"),
            ("/bin/sh wal-push %p %f 2>> /tmp/log", Level::Warning, "messages elsewhere"),
            ("/bin/sh wal-push %p %f >/tmp/log 2>&1", Level::Warning, "messages elsewhere"),
            ("/bin/sh wal-push > %p %f", Level::Fail, "`%p` is missing"),
            ("/bin/sh --repo $REPO wal-push %p %f", Level::Warning, "cannot be told"),
            ("/bin/sh --repo \"`cat x`\" wal-push %p %f", Level::Warning, "cannot be told"),
            ("/bin/sh # wal-push %p %f", Level::Fail, "`%p` is missing"),
            ("/bin/sh wal-push '%p", Level::Fail, "a quote"),
            ("pgark wal-push %p %f", Level::Warning, "runs `pgark`, which is not known"),
            ("/opt/pgark/bin/pgark wal-push %p %f", Level::Warning, "not known"),
            ("sudo pgark wal-push %p %f", Level::Warning, "runs `sudo`, which is not known"),
            ("cp %p /srv/wal-push/%f", Level::Fail, "runs `cp`, not `pgark wal-push`"),
            ("echo 'pgark wal-push %p %f'", Level::Fail, "runs `echo`, not"),
            ("(disabled)", Level::Fail, "not set"),
            ("", Level::Fail, "not set"),
        ] {
            let finding = judged(text);
            assert!(finding.level == level && finding.message.contains(said), "{text}: {finding:?}");
        }
    }

    #[test]
    fn nothing_is_repeated_but_the_program() {
        for text in [
            "AWS_SECRET_ACCESS_KEY=CANARY aws s3 cp %p s3://b/%f",
            "export KEY=CANARY; pgark wal-push %p %f",
            "sh -c 'KEY=CANARY pgark wal-push %p'",
            "'KEY=CANARY x' wal-push %p",
            "KEY='CANARY",
            "pgark --conninfo password=CANARY wal-push %p %f CANARY",
            "s3://id:CANARY@b wal-push %p",
        ] {
            let finding = judged(text);
            assert!(!format!("{finding:?}").contains("CANARY"), "{text}: {finding:?}");
        }
    }
}
