//! `tablespace_map`: where the tablespaces of a base backup lie.
//!
//! PostgreSQL makes the links in `pg_tblspc` from this file when recovery begins, over whatever is
//! there: a restore that moves a tablespace must rewrite it, too.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Malformed;

/// One tablespace: the link `pg_tblspc/<oid>` and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The tablespace's object identifier, which names the link.
    pub oid: u32,
    /// The directory it leads to. Bytes, as file names are.
    pub path: PathBuf,
}

/// The content of a `tablespace_map`.
///
/// * Object identifiers are not 0 and stand there once.
/// * Paths are not empty, hold no zero byte, and fit into PostgreSQL's line buffer.
///
/// Lines are `<decimal oid> <path>\n`; within the path a backslash stands before each newline,
/// carriage return and backslash. Source: `do_pg_backup_start` in `access/transam/xlog.c`,
/// `read_tablespace_map` in `access/transam/xlogrecovery.c` (14: both in `xlog.c`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap(Vec<TablespaceLink>);

/// `MAXPGPATH` in `pg_config_manual.h`: PostgreSQL cuts a longer line off without a word.
const MAX_PATH: usize = 1024;

impl TablespaceMap {
    /// A map of these links, in this order.
    pub fn new(links: Vec<TablespaceLink>) -> Result<Self, Malformed> {
        for (index, link) in links.iter().enumerate() {
            let path = link.path.as_os_str().as_bytes();
            let bad = |what: String| Err(malformed(format!("tablespace {}: {what}", link.oid)));
            if link.oid == 0 || links[..index].iter().any(|other| other.oid == link.oid) {
                return bad("stands there twice, or is none".into());
            }
            if path.is_empty() || path.contains(&0) {
                return bad(format!("`{}` is not a path", link.path.display()));
            }
            let length = link.oid.to_string().len() + 1 + path.len();
            if length >= MAX_PATH {
                return bad(format!("the line has {length} bytes, PostgreSQL reads {} at most", MAX_PATH - 1));
            }
        }
        Ok(Self(links))
    }

    /// Reads the bytes of the file; an empty one is a cluster without tablespaces of its own.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut links = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for byte in bytes {
            match byte {
                // Blank lines are passed over: PostgreSQL does so for the sake of CR LF.
                b'\n' | b'\r' if !escaped => {
                    if !line.is_empty() {
                        links.push(parse_line(&std::mem::take(&mut line))?);
                    }
                }
                b'\\' if !escaped => escaped = true,
                byte => {
                    line.push(*byte);
                    escaped = false;
                }
            }
        }
        if !line.is_empty() || escaped {
            return Err(malformed("its last line is cut off"));
        }
        Self::new(links)
    }

    /// The tablespaces, in the order of the file.
    pub fn links(&self) -> &[TablespaceLink] {
        &self.0
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for link in &self.0 {
            bytes.extend_from_slice(format!("{} ", link.oid).as_bytes());
            for byte in link.path.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(*byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

fn malformed(what: impl std::fmt::Display) -> Malformed {
    Malformed::new(format!("tablespace_map: {what}"))
}

fn parse_line(line: &[u8]) -> Result<TablespaceLink, Malformed> {
    let bad = || malformed(format!("`{}` is not an object identifier and a path", String::from_utf8_lossy(line)));
    let space = line.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
    let digits = line[..space].iter().all(u8::is_ascii_digit);
    let oid = std::str::from_utf8(&line[..space]).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    let path = OsStr::from_bytes(&line[space + 1..]);
    Ok(TablespaceLink { oid: oid.ok_or_else(bad)?, path: PathBuf::from(path) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(oid: u32, path: &[u8]) -> TablespaceLink {
        TablespaceLink { oid, path: PathBuf::from(OsStr::from_bytes(path)) }
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let map = TablespaceMap::parse(b"16384 /srv/fast disk\n16385 /srv/a\\\nb\\\\c\n").unwrap();
        assert_eq!(map.links(), [link(16384, b"/srv/fast disk"), link(16385, b"/srv/a\nb\\c")]);
        assert_eq!(TablespaceMap::parse(b"").unwrap().links(), []);
        assert_eq!(TablespaceMap::parse(b"1 /a\r\n2 /b\r\n").unwrap().links(), [link(1, b"/a"), link(2, b"/b")]);
    }

    #[test]
    fn refuses_what_postgresql_would_misread() {
        for bytes in [
            &b"16384 /srv"[..],
            b"16384 /srv\\\n",
            b"16384 /srv\n\\",
            b"16384\n",
            b"16384 \n",
            b" /srv\n",
            b"+1 /srv\n",
            b"0 /srv\n",
            b"4294967296 /srv\n",
            b"1 /a\n1 /b\n",
            b"1 /a\0b\n",
        ] {
            assert!(TablespaceMap::parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        let longest = [b'x'; 1021];
        assert!(TablespaceMap::new(vec![link(1, &longest)]).is_ok());
        assert!(TablespaceMap::new(vec![link(10, &longest)]).is_err());
    }

    proptest! {
        #[test]
        fn maps_go_both_ways(
            oids in proptest::collection::btree_set(1u32.., 0..6),
            paths in proptest::collection::vec(proptest::collection::vec(
                prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'\\'), Just(b' '), 1u8..], 1..30), 6),
        ) {
            let links = oids.into_iter().zip(&paths).map(|(oid, path)| link(oid, path)).collect();
            let map = TablespaceMap::new(links).unwrap();
            prop_assert_eq!(TablespaceMap::parse(&map.to_bytes()).unwrap(), map);
        }

        #[test]
        fn any_bytes_are_a_map_or_an_error(bytes in "[0-9]{0,3} ?[/a\\\\\n\r]{0,9}\n?") {
            if let Ok(map) = TablespaceMap::parse(bytes.as_bytes()) {
                prop_assert_eq!(TablespaceMap::parse(&map.to_bytes()).unwrap(), map);
            }
        }
    }
}
