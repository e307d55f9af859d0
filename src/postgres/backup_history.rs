//! Backup history files: the note that PostgreSQL archives when a base backup ends.

use super::{Malformed, SegmentName};

/// Checks that the text of `<segment>.<offset>.backup` is such a note, and of a backup that starts in
/// that segment.
///
/// The first line is `START WAL LOCATION: X/X (file <segment>)`, the second begins with
/// `STOP WAL LOCATION: `. Source: `build_backup_content` in `access/transam/xlogbackup.c` (15 and
/// newer), `do_pg_stop_backup` in `access/transam/xlog.c` (14).
pub fn check_backup_history(segment: SegmentName, bytes: &[u8]) -> Result<(), Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::new("it is not UTF-8 text"))?;
    let mut lines = text.lines();
    let start = lines.next().unwrap_or_default();
    let named = start
        .strip_prefix("START WAL LOCATION: ")
        .and_then(|rest| rest.split_once(" (file "))
        .and_then(|(_, file)| file.strip_suffix(')'))
        .ok_or_else(|| Malformed::new("it does not begin with `START WAL LOCATION: `"))?;
    if named != segment.to_string() {
        return Err(Malformed::new(format!("it tells of a backup that starts in segment {named}")));
    }
    if !lines.next().unwrap_or_default().starts_with("STOP WAL LOCATION: ") {
        return Err(Malformed::new("its second line does not begin with `STOP WAL LOCATION: `"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTE: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        STOP WAL LOCATION: 0/2000100 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n";

    #[test]
    fn accepts_its_own_name_only() {
        assert!(check_backup_history("000000010000000000000002".parse().unwrap(), NOTE.as_bytes()).is_ok());
        assert!(check_backup_history("000000010000000000000003".parse().unwrap(), NOTE.as_bytes()).is_err());
    }

    #[test]
    fn refuses_fragments() {
        let segment = "000000010000000000000002".parse().unwrap();
        for length in [0, 10, 40, 62, 70] {
            assert!(check_backup_history(segment, &NOTE.as_bytes()[..length]).is_err(), "{length}");
        }
    }
}
