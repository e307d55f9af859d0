//! One line of a configuration file of the server: `name = value`, or an `include`.
//!
//! Source: the scanner and `DeescapeQuotedString` in `utils/misc/guc-file.l`.

/// A setting as a line gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfLine {
    /// Its name, in lower case: PostgreSQL makes no difference.
    pub name: String,
    /// Its value, without quotes.
    pub value: String,
}

impl ConfLine {
    /// Reads a line; `None` for an empty one, a comment, and what PostgreSQL would complain of.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_start();
        let in_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.') || !c.is_ascii();
        let end = line.find(|c| !in_name(c)).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let rest = rest.trim_start();
        let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
        let value = match rest.strip_prefix('\'') {
            Some(quoted) => unquoted(quoted)?,
            None => rest.split(|c: char| c.is_whitespace() || c == '#').next()?.to_owned(),
        };
        let nothing = value.is_empty() && !rest.starts_with('\'');
        (!nothing).then(|| ConfLine { name: name.to_lowercase(), value })
    }
}

/// The text up to the closing quote.
fn unquoted(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut rest = text.chars().peekable();
    loop {
        match rest.next()? {
            '\'' if rest.peek() == Some(&'\'') => value.extend(rest.next()),
            '\'' => return Some(value),
            '\\' => match rest.next()? {
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                digit @ '0'..='7' => {
                    let mut code = digit.to_digit(8)?;
                    for _ in 0..2 {
                        let Some(next) = rest.peek().and_then(|next| next.to_digit(8)) else { break };
                        code = code * 8 + next;
                        rest.next();
                    }
                    value.push(char::from(code as u8));
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        for (line, name, value) in [
            ("max_connections = 100", "max_connections", "100"),
            ("  Max_Connections\t100 # enough", "max_connections", "100"),
            ("MAX_CONNECTIONS='7'", "max_connections", "7"),
            ("data_directory = '/srv/it''s' # comment", "data_directory", "/srv/it's"),
            (r"x = 'a\'b\\c\n\101'", "x", "a'b\\c\nA"),
            ("include 'conf.d/a b.conf'", "include", "conf.d/a b.conf"),
            ("include_dir=conf.d", "include_dir", "conf.d"),
            ("synchronous_standby_names = ''", "synchronous_standby_names", ""),
            ("my.setting = on", "my.setting", "on"),
        ] {
            let expected = ConfLine { name: name.to_owned(), value: value.to_owned() };
            assert_eq!(ConfLine::parse(line), Some(expected), "{line}");
        }
        for line in ["", "  ", "# max_connections = 1", "max_connections", "x = 'open", "= 1", "1x = 2", "x = # none"] {
            assert_eq!(ConfLine::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_does_no_harm(line in "\\PC{0,60}|[a-z]{1,5} ?= ?'[\\\\0-9a']{0,9}'?") {
            ConfLine::parse(&line);
        }
    }
}
