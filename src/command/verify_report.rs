//! What `verify` reports.

use serde::Serialize;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is not what was written.
    Damaged,
    /// It should be there and is not.
    Missing,
    /// The store did not answer, or not to this.
    Unknown,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is the matter.
    pub verdict: Verdict,
    /// With which object.
    pub key: String,
    /// In words.
    pub message: String,
}

/// The report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Version of this report.
    pub schema: u32,
    /// Backups whose manifests were read.
    pub backups: usize,
    /// Logical dumps whose manifests were read.
    pub dumps: usize,
    /// Parts that were read.
    pub parts: usize,
    /// WAL objects that were read.
    pub wal: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Records of WAL that were looked at; `None`: they were not asked for.
    pub records: Option<u64>,
    /// Objects that were deleted by somebody meanwhile.
    pub gone: usize,
    /// The share that was looked at, in percent.
    pub percent: Option<f64>,
    /// What the share was chosen by.
    pub seed: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// Whether it was ended before everything was looked at.
    pub incomplete: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// Whether anything is damaged or missing.
    pub fn has_damage(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict != Verdict::Unknown)
    }

    /// Whether something could not be told.
    pub fn has_doubt(&self) -> bool {
        self.incomplete
            || self.read_nothing()
            || self.findings.iter().any(|finding| finding.verdict == Verdict::Unknown)
    }

    /// Whether there was nothing to read: then nobody knows more than before.
    pub fn read_nothing(&self) -> bool {
        self.backups + self.dumps + self.parts + self.wal == 0
    }
}
