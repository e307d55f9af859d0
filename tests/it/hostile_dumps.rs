//! Manifests of dumps that somebody wrote to do harm: each is refused for what is wrong with it, and nothing of it reaches a server or a
//! file.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::backups::as_servers_user;
use crate::dumps::{at_server, server, take_dump};
use crate::postgres::{Account, Cluster, Installation, Scratch};
use crate::repository::Repository;

/// A dump, and its manifest as lines that can be changed.
struct Stage {
    repository: Repository,
    cluster: Cluster,
    id: String,
    key: String,
    lines: Vec<Value>,
    place: Scratch,
}

impl Stage {
    fn set() -> Self {
        let repository = Repository::local();
        let cluster = server(Installation::preferred());
        cluster.execute("create database shop");
        cluster.execute("create database target");
        crate::dumps::sql(&cluster, "shop", "create table t as select generate_series(1, 10) as i");
        let id = take_dump(&repository, &cluster, &["--globals", "--database", "shop"]);
        let key = format!("main/dump/{id}/manifest.json.zst");
        let text = zstd::decode_all(&repository.object(&key).unwrap()[..]).unwrap();
        let text = String::from_utf8(text).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.pop();
        let place = Scratch::new("hostile");
        Account::of_servers().own(place.path());
        Stage { repository, cluster, id, key, lines, place }
    }

    /// Stores these lines, with an end that fits.
    fn write(&self, lines: &[Value]) {
        // The field by which a line is known stands first.
        let text = |line: &Value| {
            let Value::Object(fields) = line else { return format!("{line}\n") };
            let first = ["file", "part"].into_iter().find(|name| fields.contains_key(*name));
            let others = fields.iter().filter(|(name, _)| Some(name.as_str()) != first);
            let all = first
                .map(|name| (name, &fields[name]))
                .into_iter()
                .chain(others.map(|(name, value)| (name.as_str(), value)));
            let all: Vec<String> = all.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
            format!("{{{}}}\n", all.join(","))
        };
        let texts: Vec<String> = lines.iter().map(text).collect();
        let digest = Sha256::digest(texts.concat().as_bytes());
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let end = format!("{{\"lines\":{},\"sha256\":\"{digest}\"}}\n", texts.len());
        let pack = |text: String| {
            let mut frame = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            frame.include_checksum(true).unwrap();
            frame.write_all(text.as_bytes()).unwrap();
            frame.finish().unwrap()
        };
        let bytes = [pack(texts[0].clone()), pack(texts[1..].concat() + &end)].concat();
        self.repository.alter(&self.key, |stored| *stored = bytes);
    }

    fn is_refused(&self, what: &str, words: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let mut lines = self.lines.clone();
        change(&mut lines);
        self.write(&lines);
        let file = self.place.path().join("file").display().to_string();
        for more in [&["--into", "target"][..], &["--to", &file]] {
            let all: Vec<&str> =
                ["dump-restore", &self.id, "--database", "shop"].into_iter().chain(more.iter().copied()).collect();
            let outcome = as_servers_user(&at_server(&self.repository, &self.cluster, &all).impatient());
            assert_eq!(outcome.code, 14, "{what}: {outcome:?}");
            assert!(outcome.stderr.contains(words), "{what}: `{words}` is not in {outcome:?}");
        }
        assert_eq!(std::fs::read_dir(self.place.path()).unwrap().count(), 0, "{what}");
        let tables = crate::dumps::sql(&self.cluster, "target", "select count(*) from pg_class where relname = 't'");
        assert_eq!(tables[0][0], "0", "{what}");
        assert_eq!(
            as_servers_user(&at_server(&self.repository, &self.cluster, &["verify"]).impatient()).code,
            2,
            "{what}"
        );
    }
}

#[test]
fn each_is_refused_for_what_is_wrong_with_it() {
    let stage = Stage::set();
    let part = 4;
    assert!(stage.lines[part]["part"] == 1 && stage.lines[3]["database"] == "shop", "{:?}", stage.lines);
    type Change = fn(&mut Vec<Value>);
    let other = "ab".repeat(32);
    let cases: [(&str, &str, Change); 14] = [
        ("another format", "needs another version", |l| l[0]["format"] = json!("pgark-dump-2")),
        ("another dump's", "is the manifest of", |l| l[0]["id"] = json!("20200101T000000Z-00000000")),
        ("parts without end", "more than", |l| l[0]["parts"] = json!(u64::MAX)),
        ("files without end", "more than", |l| l[0]["files"] = json!(u32::MAX)),
        ("a part of any size", "where part 1 is due", |l| l[4]["stored"] = json!(u64::MAX)),
        ("a part that unpacks to anything", "where part 1 is due", |l| l[4]["plain"] = json!(1u64 << 60)),
        ("an empty part", "where part 1 is due", |l| l[4]["stored"] = json!(0)),
        ("part 0", "where part 1 is due", |l| l[4]["part"] = json!(0)),
        ("a part before its file", "in front of its file", |l| l.swap(1, 2)),
        ("a file twice", "what another one has", |l| {
            l[3]["content"] = json!("globals");
        }),
        ("a file of another size", "its parts have", |l| l[3]["plain"] = json!(7)),
        ("sums that do not fit", "do not add up", |l| l[0]["plain_bytes"] = json!(7)),
        ("a negative number", "invalid value", |l| l[4]["stored"] = json!(-1)),
        ("an unknown form", "unknown variant", |l| l[3]["form"] = json!("shell")),
    ];
    for (what, words, change) in cases {
        stage.is_refused(what, words, change);
    }
    // Numbers that fit each other, but not the objects.
    stage.is_refused("another digest of a part", "not those that were written", |l| l[4]["sha256"] = json!(other));
    stage.is_refused("another digest of a file", "not what was dumped", |l| l[3]["sha256"] = json!(other));
    stage.is_refused("another part's place", "was written with", |l| {
        let stored = l[4]["stored"].as_u64().unwrap();
        l[4]["stored"] = json!(stored + 1);
        l[0]["stored_bytes"] = json!(l[0]["stored_bytes"].as_u64().unwrap() + 1);
    });
    // Nothing wrong: accepted.
    stage.write(&stage.lines);
    let outcome = as_servers_user(&at_server(
        &stage.repository,
        &stage.cluster,
        &["dump-restore", &stage.id, "--into", "target"],
    ));
    assert_eq!(outcome.code, 0, "{outcome:?}");
}
