//! Reading PostgreSQL's `backup_manifest`, as it arrives with a backup.
//!
//! The server writes one entry a line; they are handed on one by one, so that memory does not grow
//! with the number of files. The other way is in [`super::backup_manifest`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, PathBuf};

use jiff::{Timestamp, civil, tz::TimeZone};
use serde::Deserialize;
use sha2::Digest;

use super::backup_manifest::{FileChecksum, ManifestFile, WalRange, hex, unhex};
use super::{Lsn, Malformed, SystemId, TimelineId};

/// Takes the bytes of a manifest in pieces of any size.
///
/// Entries are handed on before the manifest's own checksum is known, which stands at its end: believe
/// none until [`ManifestReader::finish`] has returned. Source: `common/parse_manifest.c`, and
/// [`super::backup_manifest::ManifestWriter`] for the layout.
#[derive(Debug)]
pub struct ManifestReader {
    expected: Expected,
    line: Vec<u8>,
    digest: sha2::Sha256,
    end: ManifestEnd,
}

/// What a manifest says besides its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestEnd {
    /// Whose backup it is of; from PostgreSQL 17 on.
    pub system_id: Option<SystemId>,
    /// The WAL that the backup needs; the newest timeline first.
    pub wal: Vec<WalRange>,
    /// How many files there were.
    pub files: u64,
}

/// Which line comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Version,
    SystemId,
    Files,
    File,
    WalRanges,
    WalRange,
    Checksum,
    Nothing,
}

/// Longer than any line of PostgreSQL's: a path has 1024 bytes, of which each may take six.
const MAX_LINE: usize = 16 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalLine {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl Default for ManifestReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestReader {
    /// Before the first byte.
    pub fn new() -> Self {
        Self { expected: Expected::Version, line: Vec::new(), digest: sha2::Sha256::new(), end: ManifestEnd::default() }
    }

    /// Takes the next bytes, and hands on the files whose lines they complete.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(ManifestFile)) -> Result<(), Malformed> {
        while let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') {
            let (rest_of_line, others) = bytes.split_at(newline + 1);
            self.line.extend_from_slice(rest_of_line);
            let line = std::mem::take(&mut self.line);
            if self.expected != Expected::Checksum {
                self.digest.update(&line);
            }
            let text = std::str::from_utf8(&line).map_err(|_| malformed("it is not UTF-8 text"))?;
            if let Some(file) = self.take_line(text.trim_end())? {
                self.end.files += 1;
                each(file);
            }
            bytes = others;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > MAX_LINE {
            return Err(malformed(format!("a line is longer than {MAX_LINE} bytes")));
        }
        Ok(())
    }

    /// After the last byte: the rest of what the manifest says, if it is whole and its checksum right.
    pub fn finish(self) -> Result<ManifestEnd, Malformed> {
        if self.expected != Expected::Nothing || !self.line.is_empty() {
            return Err(malformed("it is cut off"));
        }
        Ok(self.end)
    }

    fn take_line(&mut self, line: &str) -> Result<Option<ManifestFile>, Malformed> {
        let unexpected = || malformed(format!("`{line}` is not the line that belongs here"));
        let item = line.strip_suffix(',').unwrap_or(line);
        let value = |name: &str| item.strip_prefix(name).ok_or_else(unexpected);
        self.expected = match self.expected {
            Expected::Version => match value("{ \"PostgreSQL-Backup-Manifest-Version\": ")? {
                "1" => Expected::Files,
                "2" => Expected::SystemId,
                other => return Err(malformed(format!("version {other} is not known to this pgark"))),
            },
            Expected::SystemId => {
                self.end.system_id = Some(value("\"System-Identifier\": ")?.to_owned().try_into()?);
                Expected::Files
            }
            Expected::Files if line == "\"Files\": [" => Expected::File,
            Expected::File if item == "]" => Expected::WalRanges,
            Expected::File => return parse_file(item).map(Some),
            Expected::WalRanges if line == "\"WAL-Ranges\": [" => Expected::WalRange,
            Expected::WalRange if item == "]" => Expected::Checksum,
            // Of a list without entries.
            Expected::WalRange if item.is_empty() => Expected::WalRange,
            Expected::WalRange => {
                self.end.wal.push(parse_wal_range(item)?);
                Expected::WalRange
            }
            Expected::Checksum => {
                let found = value("\"Manifest-Checksum\": \"")?.strip_suffix("\"}").ok_or_else(unexpected)?;
                if found != hex(&self.digest.clone().finalize()) {
                    return Err(malformed("its checksum is wrong"));
                }
                Expected::Nothing
            }
            Expected::Files | Expected::WalRanges | Expected::Nothing => return Err(unexpected()),
        };
        Ok(None)
    }
}

fn malformed(what: impl std::fmt::Display) -> Malformed {
    Malformed::new(format!("backup_manifest: {what}"))
}

fn parse_file(item: &str) -> Result<ManifestFile, Malformed> {
    let bad = |what: &str| malformed(format!("{what}: `{item}`"));
    let line: FileLine = serde_json::from_str(item).map_err(|e| bad(&e.to_string()))?;
    let path = match (line.path, line.encoded_path) {
        (Some(path), None) => PathBuf::from(path),
        (None, Some(path)) => unhex(&path).map(|bytes| OsString::from_vec(bytes).into()).unwrap_or_default(),
        _ => PathBuf::new(),
    };
    if !stays_below(&path) {
        return Err(bad("no path of a file below the data directory"));
    }
    let checksum = match (line.algorithm, line.checksum) {
        (None, None) => Some(FileChecksum::None),
        (Some(algorithm), Some(sum)) => FileChecksum::from_hex(&algorithm, &sum),
        _ => None,
    };
    Ok(ManifestFile {
        path,
        size: line.size,
        modified: parse_time(&line.modified).ok_or_else(|| bad("no time in GMT"))?,
        checksum: checksum.ok_or_else(|| bad("no CRC32C and no SHA256"))?,
    })
}

/// A path that a restore may join to a directory.
fn stays_below(path: &std::path::Path) -> bool {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    plain && !path.as_os_str().is_empty() && !path.as_os_str().as_encoded_bytes().contains(&0)
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let time = civil::DateTime::strptime("%Y-%m-%d %H:%M:%S GMT", text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn parse_wal_range(item: &str) -> Result<WalRange, Malformed> {
    let line: WalLine = serde_json::from_str(item).map_err(|e| malformed(format!("{e}: `{item}`")))?;
    let timeline = TimelineId::new(line.timeline).ok_or_else(|| malformed("timeline 0 does not exist"))?;
    let (start, end): (Lsn, Lsn) = (line.start.parse()?, line.end.parse()?);
    if end < start {
        return Err(malformed(format!("WAL from {start} to {end} ends before it begins")));
    }
    Ok(WalRange { timeline, start, end })
}

#[cfg(test)]
mod tests {
    use super::super::backup_manifest::ManifestWriter;
    use super::super::{ClusterIdent, PgMajor};
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], step: usize) -> Result<(Vec<ManifestFile>, ManifestEnd), Malformed> {
        let mut files = Vec::new();
        let mut reader = ManifestReader::new();
        for piece in bytes.chunks(step) {
            reader.push(piece, |file| files.push(file))?;
        }
        Ok((files, reader.finish()?))
    }

    fn with_checksum(head: &str) -> String {
        format!("{head}\"Manifest-Checksum\": \"{}\"}}\n", hex(&sha2::Sha256::digest(head)))
    }

    const HEAD: &str = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711143007910380015,\n\
        \"Files\": [\n{ \"Path\": \"base/5/1\", \"Size\": 24576, \"Last-Modified\": \"2026-11-22 23:35:32 GMT\", \
        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"b0f1a065\" },\n{ \"Encoded-Path\": \"6772fc6e\", \"Size\": 0, \
        \"Last-Modified\": \"2026-11-22 23:35:32 GMT\" }\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \
        \"Start-LSN\": \"0/1600028\", \"End-LSN\": \"0/1600120\" }\n],\n";

    #[test]
    fn reads_what_postgresql_writes() {
        let (files, end) = read(with_checksum(HEAD).as_bytes(), 1000).unwrap();
        assert_eq!(end.system_id, Some(SystemId(7_711_143_007_910_380_015)));
        assert_eq!((end.files, end.wal.len()), (2, 1));
        assert_eq!((end.wal[0].start, end.wal[0].end), (Lsn(0x160_0028), Lsn(0x160_0120)));
        assert_eq!((files[0].path.to_str(), files[0].size), (Some("base/5/1"), 24_576));
        assert_eq!(files[0].checksum, FileChecksum::Crc32c(0x65A0_F1B0));
        assert_eq!(files[0].modified.as_second(), 1_795_390_532);
        assert_eq!(files[1].path.as_os_str().as_encoded_bytes(), b"gr\xfcn");
        assert_eq!(files[1].checksum, FileChecksum::None);
    }

    #[test]
    fn refuses_what_is_not_whole() {
        let text = with_checksum(HEAD);
        for length in 0..text.len() {
            assert!(read(&text.as_bytes()[..length], 64).is_err(), "{length}");
        }
        for (at, _) in text.char_indices() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes, 64).is_err(), "{at}");
        }
        assert!(read((text + "\n").as_bytes(), 64).is_err());
    }

    #[test]
    fn refuses_what_would_do_harm() {
        for (from, to) in [
            ("base/5/1", "/etc/passwd"),
            ("base/5/1", "base/../../x"),
            ("base/5/1", ""),
            ("base/5/1", "a\\u0000b"),
            ("6772fc6e", "2f6574"),
            ("6772fc6e", "677"),
            ("CRC32C", "SHA512"),
            ("b0f1a065", "b0f1a0"),
            ("\"Size\": 24576", "\"Size\": -1"),
            ("GMT\" }", "CET\" }"),
            ("\"Size\": 0", "\"Size\": 0, \"Other\": 1"),
            ("\"Timeline\": 1", "\"Timeline\": 0"),
            ("0/1600120", "0/1500000"),
            ("Version\": 2", "Version\": 3"),
            ("\"System-Identifier\": 7711143007910380015,\n", ""),
        ] {
            assert!(HEAD.contains(from), "{from}");
            assert!(read(with_checksum(&HEAD.replace(from, to)).as_bytes(), 64).is_err(), "{from} -> {to}");
        }
        let endless = vec![b'x'; MAX_LINE + 1];
        assert!(ManifestReader::new().push(&endless, |_| ()).is_err());
    }

    fn any_file() -> impl Strategy<Value = ManifestFile> {
        let names = proptest::collection::vec(
            proptest::collection::vec((1u8..).prop_filter("a separator", |byte| *byte != b'/' && *byte != b'.'), 1..9),
            1..4,
        );
        let checksum = prop_oneof![
            Just(FileChecksum::None),
            any::<u32>().prop_map(FileChecksum::Crc32c),
            any::<[u8; 32]>().prop_map(FileChecksum::Sha256),
        ];
        (names, any::<u64>(), -60_000_000_000i64..200_000_000_000, checksum).prop_map(
            |(names, size, second, checksum)| {
                let path = names.into_iter().map(OsString::from_vec).collect();
                ManifestFile { path, size, modified: Timestamp::from_second(second).unwrap(), checksum }
            },
        )
    }

    proptest! {
        #[test]
        fn manifests_go_both_ways(
            files in proptest::collection::vec(any_file(), 0..5), ranges in proptest::collection::vec((1u32.., any::<[u64; 2]>()), 0..3),
            major in 13u32..=18, system_id: u64, step in 1usize..300,
        ) {
            let ident = ClusterIdent { system_id: SystemId(system_id), major: PgMajor::try_from(major).unwrap() };
            let wal: Vec<_> = ranges.into_iter().map(|(timeline, [a, b])| WalRange {
                timeline: TimelineId::new(timeline).unwrap(), start: Lsn(a.min(b)), end: Lsn(a.max(b)),
            }).collect();
            let mut writer = ManifestWriter::begin(Vec::new(), ident).unwrap();
            for file in &files {
                writer.file(file).unwrap();
            }
            let bytes = writer.finish(&wal).unwrap();
            let (read_files, end) = read(&bytes, step).unwrap();
            let expected = ManifestEnd {
                system_id: (major >= 17).then_some(ident.system_id), wal, files: files.len() as u64,
            };
            prop_assert_eq!(end, expected);
            prop_assert_eq!(read_files, files);
        }
    }
}
