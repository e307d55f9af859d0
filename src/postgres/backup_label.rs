//! `backup_label`: where the recovery of a base backup must begin.
//!
//! The file is kept and restored byte for byte; what is read off here is for planning and checking.

use super::{Lsn, Malformed, SegmentName, SegmentSize, TimelineId};

/// The content of a `backup_label`.
///
/// * The start segment is on the start timeline.
/// * The checkpoint does not lie before the start.
/// * The backup was not taken in the exclusive mode, whose end PostgreSQL does not look for.
///
/// One `NAME: value` a line, in this order: `START WAL LOCATION: X/X (file <segment>)`, `CHECKPOINT
/// LOCATION`, `BACKUP METHOD`, `BACKUP FROM`, `START TIME`, `LABEL`, `START TIMELINE`, and in an
/// incremental backup (17 and newer) `INCREMENTAL FROM LSN`, `INCREMENTAL FROM TLI`. Source:
/// `build_backup_content` in `access/transam/xlogbackup.c` (15 and newer), `do_pg_start_backup` in
/// `access/transam/xlog.c` (13 and 14); `read_backup_label` in `access/transam/xlogrecovery.c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where the replay begins: WAL from here on is needed.
    pub start_lsn: Lsn,
    /// The segment that holds the start; [`BackupLabel::check_segment`] compares both.
    pub start_segment: SegmentName,
    /// The checkpoint record that recovery reads first.
    pub checkpoint_lsn: Lsn,
    /// Whether a server in recovery was backed up.
    pub from_standby: bool,
    /// When the backup began, in the server's `log_timezone`: for people only.
    pub start_time: String,
    /// What the taker of the backup called it.
    pub label: String,
    /// The timeline on which the backup began.
    pub timeline: TimelineId,
    /// Which backup this one continues, if it holds changed blocks only.
    pub incremental_from: Option<IncrementalFrom>,
}

/// The start of the backup that an incremental backup continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// Its start position.
    pub lsn: Lsn,
    /// Its start timeline.
    pub timeline: TimelineId,
}

impl BackupLabel {
    /// Reads the bytes of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8 text"))?;
        if !text.ends_with('\n') {
            return Err(malformed("its last line is cut off"));
        }
        let mut lines = Lines(text.lines().peekable());
        let (start_lsn, start_segment) = parse_start(lines.value("START WAL LOCATION")?)?;
        let checkpoint_lsn: Lsn = lines.value("CHECKPOINT LOCATION")?.parse()?;
        let method = lines.value("BACKUP METHOD")?;
        if method != "streamed" {
            return Err(malformed(format!("the backup method `{method}` is not `streamed`")));
        }
        let from_standby = match lines.value("BACKUP FROM")? {
            "standby" => true,
            // PostgreSQL 13 still says `master`.
            "primary" | "master" => false,
            other => return Err(malformed(format!("the backup is from `{other}`, neither primary nor standby"))),
        };
        let start_time = lines.value("START TIME")?.to_owned();
        let label = lines.value("LABEL")?.to_owned();
        let timeline = parse_timeline(lines.value("START TIMELINE")?)?;
        let incremental_from = match lines.0.peek() {
            None => None,
            Some(_) => Some(IncrementalFrom {
                lsn: lines.value("INCREMENTAL FROM LSN")?.parse()?,
                timeline: parse_timeline(lines.value("INCREMENTAL FROM TLI")?)?,
            }),
        };
        if let Some(line) = lines.0.next() {
            return Err(malformed(format!("it goes on with `{line}`")));
        }
        if start_segment.timeline != timeline {
            return Err(malformed(format!("segment {start_segment} is not on the start timeline {}", timeline.get())));
        }
        if checkpoint_lsn < start_lsn {
            return Err(malformed(format!("the checkpoint {checkpoint_lsn} lies before the start {start_lsn}")));
        }
        Ok(BackupLabel {
            start_lsn,
            start_segment,
            checkpoint_lsn,
            from_standby,
            start_time,
            label,
            timeline,
            incremental_from,
        })
    }

    /// Whether the segment named is the one that holds the start, with segments of this size.
    pub fn check_segment(&self, size: SegmentSize) -> Result<(), Malformed> {
        let expected = size.name(self.timeline, size.containing(self.start_lsn));
        if self.start_segment != expected {
            return Err(malformed(format!(
                "the start {} lies in segment {expected}, not in {}",
                self.start_lsn, self.start_segment
            )));
        }
        Ok(())
    }
}

struct Lines<'a>(std::iter::Peekable<std::str::Lines<'a>>);

impl<'a> Lines<'a> {
    fn value(&mut self, name: &str) -> Result<&'a str, Malformed> {
        let line = self.0.next().unwrap_or_default();
        line.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(": "))
            .ok_or_else(|| malformed(format!("expected `{name}: ` where it says `{line}`")))
    }
}

fn malformed(what: impl std::fmt::Display) -> Malformed {
    Malformed::new(format!("backup_label: {what}"))
}

fn parse_start(value: &str) -> Result<(Lsn, SegmentName), Malformed> {
    let (lsn, file) = value
        .split_once(" (file ")
        .and_then(|(lsn, file)| Some((lsn, file.strip_suffix(')')?)))
        .ok_or_else(|| malformed(format!("`{value}` is not a start position with its segment")))?;
    Ok((lsn.parse()?, file.parse()?))
}

fn parse_timeline(value: &str) -> Result<TimelineId, Malformed> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| value.parse().ok()).flatten();
    number.and_then(TimelineId::new).ok_or_else(|| malformed(format!("`{value}` is not the number of a timeline")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As PostgreSQL 15 wrote it, with segments of 1 MiB.
    const LABEL: &str = "START WAL LOCATION: 0/1A00028 (file 00000001000000000000001A)\n\
        CHECKPOINT LOCATION: 0/1A00060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-22 23:12:44 UTC\nLABEL: nightly: all\nSTART TIMELINE: 1\n";

    fn parse(text: &str) -> Result<BackupLabel, Malformed> {
        BackupLabel::parse(text.as_bytes())
    }

    #[test]
    fn reads_what_postgresql_writes() {
        let label = parse(LABEL).unwrap();
        assert_eq!(label.start_lsn, Lsn(0x1A0_0028));
        assert_eq!(label.checkpoint_lsn, Lsn(0x1A0_0060));
        assert_eq!(label.timeline, TimelineId::FIRST);
        assert_eq!(label.label, "nightly: all");
        assert_eq!(label.start_time, "2026-11-22 23:12:44 UTC");
        assert!(!label.from_standby && label.incremental_from.is_none());
        label.check_segment(SegmentSize::new(1 << 20).unwrap()).unwrap();
        assert!(label.check_segment(SegmentSize::DEFAULT).unwrap_err().to_string().contains("lies in segment"));
    }

    #[test]
    fn knows_a_standby_and_an_incremental_backup() {
        let text = LABEL.replace("primary", "standby") + "INCREMENTAL FROM LSN: 0/900028\nINCREMENTAL FROM TLI: 1\n";
        let label = parse(&text).unwrap();
        assert!(label.from_standby);
        let from = IncrementalFrom { lsn: Lsn(0x90_0028), timeline: TimelineId::FIRST };
        assert_eq!(label.incremental_from, Some(from));
        assert!(!parse(&LABEL.replace("primary", "master")).unwrap().from_standby);
        assert_eq!(parse(&LABEL.replace("nightly: all", "")).unwrap().label, "");
    }

    #[test]
    fn every_line_counts() {
        for (index, _) in LABEL.lines().enumerate() {
            let without: String = LABEL
                .lines()
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(_, line)| format!("{line}\n"))
                .collect();
            assert!(parse(&without).is_err(), "{without}");
        }
        for length in 0..LABEL.len() {
            assert!(parse(&LABEL[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_true() {
        for (from, to) in [
            ("streamed", "pg_start_backup"),
            ("primary", "somewhere"),
            ("START TIMELINE: 1", "START TIMELINE: 2"),
            ("START TIMELINE: 1", "START TIMELINE: 0"),
            ("START TIMELINE: 1", "START TIMELINE: +1"),
            ("0/1A00060", "0/1900060"),
            ("0/1A00028 ", "0-1A00028 "),
            ("nightly", "two\nlines"),
            ("TIMELINE: 1\n", "TIMELINE: 1\nMORE: 1\n"),
            ("TIMELINE: 1\n", "TIMELINE: 1\nINCREMENTAL FROM LSN: 0/1\n"),
        ] {
            assert!(LABEL.contains(from) && parse(&LABEL.replace(from, to)).is_err(), "{from} -> {to}");
        }
        assert!(BackupLabel::parse(b"START WAL LOCATION: \xff\n").is_err());
    }

    proptest! {
        #[test]
        fn fields_come_back(
            start in 0u64..1 << 60, gap in 0u64..1 << 20, timeline in 1u32.., standby: bool, bits in 20u32..=30,
            name in "[^\\r\\n\\x00]{0,40}",
        ) {
            let size = SegmentSize::new(1 << bits).unwrap();
            let start = start % (1 << 60);
            let timeline = TimelineId::new(timeline).unwrap();
            let segment = size.name(timeline, size.containing(Lsn(start)));
            let text = format!(
                "START WAL LOCATION: {} (file {segment})\nCHECKPOINT LOCATION: {}\nBACKUP METHOD: streamed\n\
                 BACKUP FROM: {}\nSTART TIME: now\nLABEL: {name}\nSTART TIMELINE: {}\n",
                Lsn(start), Lsn(start + gap), if standby { "standby" } else { "primary" }, timeline.get(),
            );
            let label = parse(&text).unwrap();
            prop_assert_eq!(label.start_lsn, Lsn(start));
            prop_assert_eq!(label.checkpoint_lsn, Lsn(start + gap));
            prop_assert_eq!((label.timeline, label.from_standby, label.label), (timeline, standby, name));
            prop_assert_eq!(parse(&text).unwrap().check_segment(size), Ok(()));
        }

        #[test]
        fn any_bytes_are_a_label_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = BackupLabel::parse(&bytes);
        }
    }
}
