//! Manifests for tests, written here a second time, line by line, as the docs of `repo/manifest.rs` say: from that of a real
//! backup, with one thing changed, and with sums that fit again. And the stage on which they are restored.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::backups::{restore_call, take_backup};
use crate::pitr::archiving;
use crate::postgres::{Account, Installation, Scratch};
use crate::program::{Call, Outcome, finish};
use crate::repository::Repository;
use crate::restore_faults::manifest_key;
use crate::restore_over::{Tree, assert_same, tree};

/// 250 MiB, in KiB: more than that the process cannot have.
const MEMORY: u32 = 250 << 10;

/// A manifest that is being written.
#[derive(Clone)]
pub struct Draft {
    pub summary: Value,
    pub parts: Vec<Value>,
    pub directories: Vec<Value>,
    pub files: Vec<Value>,
    /// Lines behind the others, as they are.
    pub more: Vec<String>,
    /// Whether the summary shall be made to fit.
    pub sums: bool,
}

const KINDS: [&str; 3] = ["part", "directory", "file"];

/// JSON with the key first that says what it is.
fn line(value: &Value) -> String {
    let mut rest = value.as_object().unwrap().clone();
    let kind = KINDS.into_iter().find(|kind| rest.contains_key(*kind)).unwrap();
    let first = rest.remove(kind).unwrap();
    let rest = Value::Object(rest).to_string();
    format!("{{\"{kind}\":{first},{}\n", &rest[1..])
}

impl Draft {
    pub fn read(stored: &[u8]) -> Self {
        let text = String::from_utf8(zstd::decode_all(stored).unwrap()).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let summary = lines.next().unwrap();
        let lines: Vec<Value> = lines.collect();
        let of = |kind: &str| lines.iter().filter(|line| line.get(kind).is_some()).cloned().collect();
        let (parts, directories, files) = (of("part"), of("directory"), of("file"));
        Draft { summary, parts, directories, files, more: Vec::new(), sums: true }
    }

    pub fn add_up(&mut self) {
        let sum = |values: &[Value], key: &str| {
            values.iter().map(|value| value[key].as_u64().unwrap_or(0)).fold(0, u64::saturating_add)
        };
        self.summary["files"] = json!(self.files.len());
        self.summary["parts"] = json!(self.parts.len());
        self.summary["plain_bytes"] = json!(sum(&self.files, "size"));
        self.summary["stored_bytes"] = json!(sum(&self.parts, "stored"));
    }

    pub fn first(&self) -> String {
        format!("{}\n", self.summary)
    }

    pub fn lines(&self) -> impl Iterator<Item = String> {
        let known = self.parts.iter().chain(&self.directories).chain(&self.files).map(line);
        known.chain(self.more.iter().cloned())
    }

    pub fn write(&mut self) -> Vec<u8> {
        if self.sums {
            self.add_up();
        }
        packed(&self.first(), self.lines())
    }

    /// The line of a file.
    pub fn file(&mut self, path: &str) -> &mut Value {
        self.files.iter_mut().find(|line| line["file"] == path).unwrap()
    }

    /// The first extent of a file, to be changed.
    pub fn extent(&mut self, path: &str) -> &mut Value {
        &mut self.file(path)["extents"][0]
    }
}

/// A manifest of these lines, with an end that fits.
pub fn packed(first: &str, lines: impl Iterator<Item = String>) -> Vec<u8> {
    let mut digest = Sha256::new();
    digest.update(first);
    let mut count = 1;
    let mut rest = zstd::stream::write::Encoder::new(zstd::encode_all(first.as_bytes(), 3).unwrap(), 1).unwrap();
    for line in lines {
        digest.update(&line);
        rest.write_all(line.as_bytes()).unwrap();
        count += 1;
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(rest, "{{\"lines\":{count},\"sha256\":\"{sha256}\"}}").unwrap();
    rest.finish().unwrap()
}

/// A name, the words of the refusal, and the change.
pub type Case<'a> = (&'a str, &'a str, &'a dyn Fn(&mut Draft));

/// A repository with one backup, and a place with canaries around the target.
pub struct Stage {
    pub repository: Repository,
    pub id: String,
    right: Vec<u8>,
    pub place: Scratch,
    around: Tree,
}

impl Stage {
    pub fn set() -> Self {
        let repository = Repository::local();
        let primary = archiving(&repository, Installation::preferred(), 1);
        let id = take_backup(&repository, &primary, &[]);
        let right = repository.object(&manifest_key(&id)).unwrap();
        let place = Scratch::new("stage");
        std::fs::create_dir_all(place.path().join("inner/full")).unwrap();
        for canary in ["canary", "1259", "inner/canary", "inner/PG_VERSION", "inner/full/canary"] {
            std::fs::write(place.path().join(canary), b"alive").unwrap();
        }
        let chown = format!("{0}:{1}", Account::of_servers().uid, Account::of_servers().gid);
        assert!(Command::new("chown").args(["-R", &chown]).arg(place.path()).status().unwrap().success());
        let around = tree(place.path());
        Stage { repository, id, right, place, around }
    }

    pub fn target(&self) -> std::path::PathBuf {
        self.place.path().join("inner/data")
    }

    /// A restore that can have so much memory and no more.
    pub fn restore(&self) -> Outcome {
        self.limited(restore_call(&self.repository, &self.target(), &[&self.id]))
    }

    /// Another command with the same limit.
    pub fn look(&self, words: &[&str]) -> Outcome {
        let call = Call::new(words.iter().copied()).envs(self.repository.env());
        self.limited(call.env("PGARK_RETENTION__KEEP_FULL", "1"))
    }

    fn limited(&self, call: Call) -> Outcome {
        let call = call.env("PGARK_BACKUP__RETRY", "1s");
        let pgark = call.within(self.place.path()).command();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("ulimit -d {MEMORY} && exec \"$0\" \"$@\"")]);
        command.arg(pgark.get_program()).args(pgark.get_args()).current_dir(self.place.path()).env_clear();
        command.envs(pgark.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(Account::of_servers().run(&mut command).spawn().unwrap())
    }

    pub fn is_refused(&self, what: &str, said: &str, manifest: &[u8]) {
        self.repository.alter(&manifest_key(&self.id), |bytes| *bytes = manifest.to_vec());
        let outcome = self.restore();
        let known = matches!(outcome.code, 2 | 4 | 14 | 18);
        assert!(known && outcome.stderr.contains(said), "{what}: not `{said}`: {outcome:?}");
        assert!(outcome.stderr.len() < 4000, "{what}: {} bytes of words", outcome.stderr.len());
        assert!(!self.target().join("global/pg_control").exists(), "{what}");
        std::fs::remove_dir_all(self.target()).ok();
        // Whoever only looks at it survives it, too, and is brief.
        let looks: [&[&str]; 5] =
            [&["verify"], &["list"], &["show", &self.id], &["status", "--no-server"], &["expire", "--dry-run"]];
        for words in looks {
            let outcome = self.look(words);
            assert!((0..=18).contains(&outcome.code), "{what}: {words:?}: {outcome:?}");
            let said = outcome.stdout.len() + outcome.stderr.len();
            assert!(said < 10_000, "{what}: {words:?}: {said} bytes of words");
        }
        assert_same(&self.around, &tree(self.place.path()));
        self.repository.alter(&manifest_key(&self.id), |bytes| bytes.clone_from(&self.right));
    }

    pub fn is_accepted(&self, manifest: &[u8]) {
        self.repository.alter(&manifest_key(&self.id), |bytes| *bytes = manifest.to_vec());
        self.restore().code(0);
        std::fs::remove_dir_all(self.target()).unwrap();
        assert_same(&self.around, &tree(self.place.path()));
    }

    pub fn draft(&self) -> Draft {
        Draft::read(&self.right)
    }

    pub fn play(&self, cases: &[Case<'_>]) {
        for (what, said, change) in cases {
            let mut draft = self.draft();
            change(&mut draft);
            self.is_refused(what, said, &draft.write());
        }
    }
}
