//! The operator's assertions: a file of SQL, each statement of which must say that all is well.
//!
//! Comments in front of a statement direct it: `-- database: NAME` from there on, `-- name: WORDS` and `-- max_age: AGE` for the
//! next statement alone. Without `max_age` it must give one row with one boolean that is true; with it, one row with one time that
//! is no older.

use std::time::Duration;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// What it is called in the report: its name, or its first words.
    pub name: String,
    /// In which database it is run.
    pub database: String,
    /// The statement, without its semicolon.
    pub sql: String,
    /// How old the time may be that it gives; `None`: it gives a boolean.
    pub max_age: Option<Duration>,
    /// In which line it begins.
    pub line: usize,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct OddAssertions {
    line: usize,
    why: String,
}

const FIRST_DATABASE: &str = "postgres";
/// A statement without a name is called by so many of its characters.
const NAME: usize = 60;

#[derive(Default)]
struct Directions {
    name: Option<String>,
    max_age: Option<Duration>,
}

/// Reads a file.
pub fn parse(text: &str) -> Result<Vec<Assertion>, OddAssertions> {
    let mut reader = Reader { text, at: 0, line: 1 };
    let mut database = FIRST_DATABASE.to_owned();
    let mut directions = Directions::default();
    let mut assertions = Vec::new();
    loop {
        while let Some(comment) = reader.between()? {
            let line = reader.line;
            direct(comment, &mut database, &mut directions).map_err(|why| OddAssertions { line, why })?;
        }
        let line = reader.line;
        let Some(sql) = reader.statement()? else { break };
        let Directions { name, max_age } = std::mem::take(&mut directions);
        let words = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let short = match words.char_indices().nth(NAME) {
            Some((end, _)) => format!("{}...", &words[..end]),
            None => words,
        };
        assertions.push(Assertion {
            name: name.unwrap_or(short),
            database: database.clone(),
            sql: sql.to_owned(),
            max_age,
            line,
        });
    }
    if directions.name.is_some() || directions.max_age.is_some() {
        return Err(OddAssertions { line: reader.line, why: "no statement follows the last direction".to_owned() });
    }
    match assertions.is_empty() {
        true => Err(OddAssertions { line: reader.line, why: "there is no statement in it".to_owned() }),
        false => Ok(assertions),
    }
}

fn direct(comment: &str, database: &mut String, directions: &mut Directions) -> Result<(), String> {
    let Some((word, value)) = comment.split_once(':').map(|(word, value)| (word.trim(), value.trim())) else {
        return Ok(());
    };
    match word {
        "database" if value.is_empty() => return Err("`database:` names none".to_owned()),
        "database" => value.clone_into(database),
        "name" if !value.is_empty() => directions.name = Some(value.to_owned()),
        "max_age" => {
            let age = humantime::parse_duration(value).ok().filter(|age| !age.is_zero());
            directions.max_age = Some(age.ok_or_else(|| format!("`max_age: {value}` is not an age like `1h`"))?);
        }
        _ => {}
    }
    Ok(())
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let passed = &self.text[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
        passed
    }

    fn odd<T>(&self, why: &str) -> Result<T, OddAssertions> {
        Err(OddAssertions { line: self.line, why: why.to_owned() })
    }

    /// The next comment between statements; `None`: a statement, or the end.
    fn between(&mut self) -> Result<Option<&'a str>, OddAssertions> {
        let blank = self.rest().len() - self.rest().trim_start_matches(|c: char| c.is_whitespace() || c == ';').len();
        self.advance(blank);
        if self.rest().starts_with("--") {
            let end = self.rest().find('\n').unwrap_or(self.rest().len());
            return Ok(Some(self.advance(end).trim_start_matches('-')));
        }
        if self.rest().starts_with("/*") {
            self.block_comment()?;
            return Ok(Some(""));
        }
        Ok(None)
    }

    fn block_comment(&mut self) -> Result<(), OddAssertions> {
        let mut depth = 0;
        loop {
            match self.rest() {
                rest if rest.starts_with("/*") => {
                    depth += 1;
                    self.advance(2);
                }
                rest if rest.starts_with("*/") => {
                    depth -= 1;
                    self.advance(2);
                    if depth == 0 {
                        return Ok(());
                    }
                }
                rest => match rest.chars().next() {
                    Some(letter) => drop(self.advance(letter.len_utf8())),
                    None => return self.odd("a comment does not end"),
                },
            }
        }
    }

    /// Up to the next semicolon that is not in a string, a name or a comment.
    fn statement(&mut self) -> Result<Option<&'a str>, OddAssertions> {
        let begin = self.at;
        while let Some(letter) = self.rest().chars().next() {
            let rest = self.rest();
            match letter {
                ';' => break,
                '\'' | '"' => {
                    // In E'...' a backslash hides what follows.
                    let before = self.text[begin..self.at].chars().next_back();
                    self.quoted(letter, letter == '\'' && matches!(before, Some('e' | 'E')))?;
                }
                '-' if rest.starts_with("--") => drop(self.advance(rest.find('\n').unwrap_or(rest.len()))),
                '/' if rest.starts_with("/*") => self.block_comment()?,
                '$' => match dollar_tag(rest) {
                    Some(tag) => match rest[tag.len()..].find(tag) {
                        Some(end) => drop(self.advance(tag.len() * 2 + end)),
                        None => return self.odd("a string in dollars does not end"),
                    },
                    None => drop(self.advance(1)),
                },
                letter => drop(self.advance(letter.len_utf8())),
            }
        }
        let sql = self.text[begin..self.at].trim();
        Ok((!sql.is_empty()).then_some(sql))
    }

    fn quoted(&mut self, quote: char, escapes: bool) -> Result<(), OddAssertions> {
        self.advance(1);
        let mut letters = self.rest().char_indices();
        while let Some((at, letter)) = letters.next() {
            if letter == '\\' && escapes {
                letters.next();
            } else if letter == quote {
                self.advance(at + 1);
                return Ok(());
            }
        }
        self.odd("a quoted text does not end")
    }
}

/// `$$` or `$word$`.
fn dollar_tag(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 2;
    let word = &rest[1..end - 1];
    let fits = word.chars().all(|c| c.is_alphanumeric() || c == '_') && !word.starts_with(|c: char| c.is_ascii_digit());
    fits.then_some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart_and_directed() {
        let text = "-- What must hold after any restore.\n\
            select count(*) > 0 from pg_class;\n\
            -- database: shop\n-- name: orders; the newest\n-- max_age: 1h 30m\n\
            select max(placed) from orders where what <> 'a;b' /* ; */ -- max_age: 1s\n  and true;\n\
            /* -- name: no */ select $x$;$$;$x$ = E'\\';' or \"a;\"\"b\";;\n\nselect 'last'";
        let parsed = parse(text).unwrap();
        let shown: Vec<_> = parsed.iter().map(|a| (a.name.as_str(), a.database.as_str(), a.max_age, a.line)).collect();
        assert_eq!(
            shown,
            [
                ("select count(*) > 0 from pg_class", "postgres", None, 2),
                ("orders; the newest", "shop", Some(Duration::from_secs(5400)), 6),
                ("select $x$;$$;$x$ = E'\\';' or \"a;\"\"b\"", "shop", None, 8),
                ("select 'last'", "shop", None, 10),
            ]
        );
        assert!(parsed[1].sql.ends_with("and true") && parsed[1].sql.starts_with("select max"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_line() {
        for (text, says) in [
            ("", "line 1: there is no statement in it"),
            ("-- max_age: soon\nselect 1", "line 1: `max_age: soon` is not an age like `1h`"),
            ("select 1;\n-- max_age: 1h\n", "line 3: no statement follows the last direction"),
            ("select 'a", "line 1: a quoted text does not end"),
            ("select 1 /* /* */", "line 1: a comment does not end"),
            ("select $a$ $b$", "line 1: a string in dollars does not end"),
            ("--database:\nselect true", "line 1: `database:` names none"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), says, "{text}");
        }
    }
}
