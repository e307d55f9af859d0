//! What belongs to no database, as `pg_dumpall` writes it and `psql` reads it.

/// Whether a line of psql tells of something that failed; that a role or a tablespace is there already is none.
///
/// With `VERBOSITY` `verbose` a line reads `psql:<stdin>:14: ERROR:  42710: role "a" already exists`, in any language but with these codes.
pub(super) fn is_fault(line: &str) -> bool {
    let is_code = |word: &&str| {
        let code = word.strip_suffix(':').unwrap_or_default();
        // Severities are words, codes have digits.
        let is_part = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase();
        code.len() == 5 && code.bytes().all(is_part) && code.bytes().any(|byte| byte.is_ascii_digit())
    };
    match line.split_whitespace().skip(1).take(2).find(is_code) {
        Some(code) => !matches!(&code[..2], "00" | "01" | "02") && code != "42710:",
        None => line.starts_with("psql: "),
    }
}

const CREATE: &[u8] = b"CREATE TABLESPACE ";
const LOCATION: &[u8] = b" LOCATION ";

/// The same with every tablespace within the data directory (`allow_in_place_tablespaces`), and not where the original has it.
///
/// `pg_dumpall` writes each on a line of its own: `CREATE TABLESPACE fast OWNER a LOCATION '/srv/fast';` (`dumpTablespaces` in
/// `pg_dumpall.c`). A line that looks otherwise is left out: the tablespace is missing then, and what needs it fails.
pub(super) fn in_place(globals: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(globals.len());
    for line in globals.split_inclusive(|byte| *byte == b'\n') {
        if !line.starts_with(CREATE) {
            text.extend_from_slice(line);
        } else if let Some(at) = line.windows(LOCATION.len()).rposition(|words| words == LOCATION) {
            text.extend_from_slice(&line[..at]);
            text.extend_from_slice(b" LOCATION '';\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_from_what_is_there_already() {
        assert!(!is_fault("psql:<stdin>:14: ERROR:  42710: role \"a\" already exists"));
        assert!(!is_fault("psql:<stdin>:14: FEHLER:  42710: Rolle »a« existiert bereits"));
        assert!(!is_fault("psql:<stdin>:9: WARNUNG:  01000: etwas"));
        assert!(!is_fault("LOCATION:  CreateRole, user.c:331"));
        assert!(is_fault("psql:<stdin>:20: ERROR:  58P01: directory \"/fast\" does not exist"));
        assert!(is_fault("psql: error: connection to server failed"));
        assert!(is_fault("psql:<stdin>:20: FATAL:  57P01: terminating connection"));
    }

    #[test]
    fn no_tablespace_is_made_elsewhere() {
        let globals = "CREATE ROLE a;\nCREATE TABLESPACE fast OWNER a LOCATION '/srv/fast';\n\
                       CREATE TABLESPACE \"a LOCATION b\" OWNER a LOCATION E'/srv/\\\\x';\nALTER TABLESPACE fast SET (seq_page_cost=1);\n\
                       CREATE TABLESPACE odd OWNER a\n";
        let expected = "CREATE ROLE a;\nCREATE TABLESPACE fast OWNER a LOCATION '';\n\
                        CREATE TABLESPACE \"a LOCATION b\" OWNER a LOCATION '';\nALTER TABLESPACE fast SET (seq_page_cost=1);\n";
        assert_eq!(String::from_utf8(in_place(globals.as_bytes())).unwrap(), expected);
    }
}
