//! Writing PostgreSQL's `backup_manifest`, by which `pg_verifybackup` judges a data directory.
//!
//! One entry at a time goes to the sink: memory does not grow with the number of files. The other
//! way is in [`super::backup_manifest_reader`].

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use jiff::Timestamp;
use sha2::Digest;

use super::{ClusterIdent, Lsn, TimelineId};

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory, through `pg_tblspc/<oid>` into tablespaces.
    pub path: PathBuf,
    /// How many bytes it has in the backup.
    pub size: u64,
    /// When it was changed last; whole seconds are written.
    pub modified: Timestamp,
    /// What its bytes sum up to.
    pub checksum: FileChecksum,
}

/// The checksum of a file: those algorithms that pgark asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChecksum {
    /// None was asked for.
    None,
    /// `CRC32C`, printed as its bytes lie in memory: the lowest first.
    Crc32c(u32),
    /// `SHA256`.
    Sha256([u8; 32]),
}

/// The WAL of one timeline that a backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where the need begins.
    pub start: Lsn,
    /// Where it ends, exclusively.
    pub end: Lsn,
}

/// Writes a manifest from its first to its last line.
///
/// A JSON object, one entry a line: `PostgreSQL-Backup-Manifest-Version` (1, or 2 from PostgreSQL
/// 17 on), in version 2 `System-Identifier` as a number, `Files`, `WAL-Ranges`, and in the last line
/// `Manifest-Checksum`, the SHA-256 of all lines before it. Times are GMT; a path that is not UTF-8 is
/// `Encoded-Path` in hexadecimal. Source: `backup/backup_manifest.c`.
#[derive(Debug)]
pub struct ManifestWriter<W> {
    sink: W,
    digest: sha2::Sha256,
    files: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Writes the head of the manifest of a backup of this cluster.
    pub fn begin(sink: W, ident: ClusterIdent) -> io::Result<Self> {
        let mut writer = Self { sink, digest: sha2::Sha256::new(), files: 0 };
        let version = if ident.major.get() < 17 { 1 } else { 2 };
        writer.put(format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n").as_bytes())?;
        if version == 2 {
            writer.put(format!("\"System-Identifier\": {},\n", ident.system_id).as_bytes())?;
        }
        writer.put(b"\"Files\": [")?;
        Ok(writer)
    }

    /// Writes a file's entry.
    pub fn file(&mut self, file: &ManifestFile) -> io::Result<()> {
        let mut line = Vec::with_capacity(256);
        line.extend_from_slice(if self.files == 0 { b"\n" } else { b",\n" });
        match file.path.to_str() {
            Some(path) => {
                line.extend_from_slice(b"{ \"Path\": ");
                serde_json::to_writer(&mut line, path)?;
            }
            None => write!(line, "{{ \"Encoded-Path\": \"{}\"", hex(file.path.as_os_str().as_bytes()))?,
        }
        let modified = file.modified.strftime("%Y-%m-%d %H:%M:%S");
        write!(line, ", \"Size\": {}, \"Last-Modified\": \"{modified} GMT\"", file.size)?;
        if let Some((algorithm, sum)) = file.checksum.in_hex() {
            write!(line, ", \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{sum}\"")?;
        }
        line.extend_from_slice(b" }");
        self.files += 1;
        self.put(&line)
    }

    /// Writes the rest, and gives the sink back. What is not flushed in it is the caller's to flush.
    pub fn finish(mut self, wal: &[WalRange]) -> io::Result<W> {
        self.put(b"\n],\n\"WAL-Ranges\": [\n")?;
        for (index, WalRange { timeline, start, end }) in wal.iter().enumerate() {
            let separator = if index == 0 { "" } else { ",\n" };
            let timeline = timeline.get();
            self.put(
                format!(
                    "{separator}{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}"
                )
                .as_bytes(),
            )?;
        }
        self.put(b"\n],\n")?;
        let sum = hex(&self.digest.finalize());
        self.sink.write_all(format!("\"Manifest-Checksum\": \"{sum}\"}}\n").as_bytes())?;
        Ok(self.sink)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.sink.write_all(bytes)
    }
}

impl FileChecksum {
    fn in_hex(self) -> Option<(&'static str, String)> {
        match self {
            FileChecksum::None => None,
            FileChecksum::Crc32c(sum) => Some(("CRC32C", hex(&sum.to_le_bytes()))),
            FileChecksum::Sha256(sum) => Some(("SHA256", hex(&sum))),
        }
    }

    /// From the two fields of an entry; `None` if they are not what one of the algorithms writes.
    pub(super) fn from_hex(algorithm: &str, sum: &str) -> Option<Self> {
        let sum = unhex(sum)?;
        match algorithm {
            "CRC32C" => Some(FileChecksum::Crc32c(u32::from_le_bytes(sum.try_into().ok()?))),
            "SHA256" => Some(FileChecksum::Sha256(sum.try_into().ok()?)),
            _ => None,
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
    bytes.collect::<Option<_>>().filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::{PgMajor, SystemId};
    use super::*;
    use std::ffi::OsStr;

    fn manifest(major: u32, files: &[ManifestFile], wal: &[WalRange]) -> String {
        let ident =
            ClusterIdent { system_id: SystemId(7_711_143_007_910_380_015), major: PgMajor::try_from(major).unwrap() };
        let mut writer = ManifestWriter::begin(Vec::new(), ident).unwrap();
        for file in files {
            writer.file(file).unwrap();
        }
        String::from_utf8(writer.finish(wal).unwrap()).unwrap()
    }

    fn file(path: impl AsRef<OsStr>, checksum: FileChecksum) -> ManifestFile {
        ManifestFile {
            path: PathBuf::from(path.as_ref()),
            size: 24_576,
            modified: Timestamp::from_second(1_795_390_532).unwrap(),
            checksum,
        }
    }

    #[test]
    fn writes_as_postgresql_does() {
        let files = [
            file("PG_VERSION", FileChecksum::Crc32c(0x66A9_B45B)),
            file("a\"b\\c\n\u{1}/\u{e4}", FileChecksum::None),
            file(OsStr::from_bytes(b"gr\xfcn"), FileChecksum::Sha256([0xAB; 32])),
        ];
        let range = |timeline, start, end| WalRange {
            timeline: TimelineId::new(timeline).unwrap(),
            start: Lsn(start),
            end: Lsn(end),
        };
        let text = manifest(15, &files, &[range(2, 0x160_0000, 0x160_0100), range(1, 0x140_0028, 0x160_0000)]);
        let (head, last) = text.split_at(text.rfind("\"Manifest-Checksum\"").unwrap());
        insta::assert_snapshot!(head, @r#"
        { "PostgreSQL-Backup-Manifest-Version": 1,
        "Files": [
        { "Path": "PG_VERSION", "Size": 24576, "Last-Modified": "2026-11-22 23:35:32 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "5bb4a966" },
        { "Path": "a\"b\\c\n\u0001/ä", "Size": 24576, "Last-Modified": "2026-11-22 23:35:32 GMT" },
        { "Encoded-Path": "6772fc6e", "Size": 24576, "Last-Modified": "2026-11-22 23:35:32 GMT", "Checksum-Algorithm": "SHA256", "Checksum": "abababababababababababababababababababababababababababababababab" }
        ],
        "WAL-Ranges": [
        { "Timeline": 2, "Start-LSN": "0/1600000", "End-LSN": "0/1600100" },
        { "Timeline": 1, "Start-LSN": "0/1400028", "End-LSN": "0/1600000" }
        ],
        "#);
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(&sha2::Sha256::digest(head))));
    }

    #[test]
    fn from_17_on_it_names_the_cluster() {
        let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711143007910380015,\n\"Files\": [\n],\n";
        assert!(manifest(17, &[], &[]).starts_with(head));
        assert!(manifest(16, &[], &[]).starts_with("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n"));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(unhex("00fFa1"), Some(vec![0, 0xFF, 0xA1]));
        assert_eq!(hex(&[0, 0xFF, 0xA1]), "00ffa1");
        for text in ["0", "0g", "+1", "\u{e4}"] {
            assert_eq!(unhex(text), None, "{text}");
        }
    }
}
