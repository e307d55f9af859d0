//! What tests ask of a running cluster and tell it, through SQL: positions, segments, archiving, promotion.

use std::time::Duration;

use super::{
    PATIENCE,
    cluster::Cluster,
    sql::{Client, Rows},
    wal::{Lsn, Position},
};

impl Cluster {
    /// A session of one's own, as the superuser.
    pub fn connect(&self) -> Client {
        self.endpoint().connect().unwrap_or_else(|error| panic!("connect: {error}; {}", self.endpoint().log_tail()))
    }

    /// Statements in a session of their own; the rows of all of them.
    pub fn sql(&self, statements: &str) -> Rows {
        self.try_sql(statements)
            .unwrap_or_else(|error| panic!("`{statements}`: {error}; {}", self.endpoint().log_tail()))
    }

    pub fn try_sql(&self, statements: &str) -> Result<Rows, String> {
        self.endpoint().connect()?.sql(statements)
    }

    pub fn execute(&self, statements: &str) {
        self.sql(statements);
    }

    /// The first column of the first row.
    pub fn value(&self, query: &str) -> String {
        let first = self.sql(query).into_iter().next().and_then(|row| row.into_iter().next());
        first.unwrap_or_else(|| panic!("`{query}` gave no row"))
    }

    pub fn is_in_recovery(&self) -> bool {
        self.value("SELECT pg_is_in_recovery()") == "t"
    }

    /// Where the next record will be written or, in recovery, how far records were replayed.
    pub fn current_lsn(&self) -> Lsn {
        let query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                     ELSE pg_current_wal_insert_lsn() END";
        self.value(query).parse().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The timeline that is written or, in recovery, that of the last restartpoint.
    pub fn timeline(&self) -> u32 {
        if self.is_in_recovery() {
            let query = "SELECT timeline_id FROM pg_control_checkpoint()";
            return self.value(query).parse().expect("a timeline is a number");
        }
        let segment = self.value("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        u32::from_str_radix(&segment[..8], 16).expect("a segment's name begins with its timeline")
    }

    pub fn position(&self) -> Position {
        Position { timeline: self.timeline(), lsn: self.current_lsn() }
    }

    pub fn system_id(&self) -> u64 {
        self.value("SELECT system_identifier FROM pg_control_system()").parse().expect("a system identifier")
    }

    pub fn segment_bytes(&self) -> u64 {
        let query = "SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'";
        self.value(query).parse().expect("the segment size in bytes")
    }

    /// Finishes the current segment, with at least one record in it, and gives its name.
    pub fn switch_wal(&self) -> String {
        let rows = self.sql("SELECT pg_logical_emit_message(false, 'tests', 'switch'); SELECT pg_switch_wal()");
        let end: Lsn = rows[1][0].parse().unwrap_or_else(|error| panic!("{error}"));
        end.segment_that_ends_here(self.timeline(), self.segment_bytes())
    }

    /// Whether archive_command succeeded for the segment, or for a later one of its timeline.
    pub fn is_archived(&self, segment: &str) -> bool {
        if self.data_dir().join(format!("pg_wal/archive_status/{segment}.done")).exists() {
            return true;
        }
        let last = self.value("SELECT last_archived_wal FROM pg_stat_archiver");
        last.len() >= 24 && last[..8] == segment[..8] && last[..24] >= *segment
    }

    pub fn wait_archived(&self, segment: &str, deadline: Duration) {
        self.wait_until(&format!("done archiving {segment}"), deadline, || self.is_archived(segment));
    }

    /// Finishes the current segment and waits until everything up to it is archived. Gives its name.
    pub fn archive_everything(&self, deadline: Duration) -> String {
        let segment = self.switch_wal();
        self.wait_archived(&segment, deadline);
        segment
    }

    /// Segments and other files that wait to be archived.
    pub fn unarchived(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.data_dir().join("pg_wal/archive_status")).expect("read archive_status");
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// Promotes a standby and waits until it is a primary.
    pub fn promote(&self) {
        self.execute("SELECT pg_promote(false)");
        self.wait_promoted(PATIENCE);
    }

    /// Waits until recovery has ended and the server takes writes. A server that went down instead is a panic.
    pub fn wait_promoted(&self, deadline: Duration) {
        let query = "SELECT pg_is_in_recovery()";
        self.wait_until("promoted", deadline, || {
            !self.is_running() || self.is_accepting() && self.try_sql(query).is_ok_and(|rows| rows[0][0] == "f")
        });
        assert!(self.is_running(), "the server went down in recovery; {}", self.endpoint().log_tail());
    }
}
