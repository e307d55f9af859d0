//! WAL that a receiver found lost: `status` tells it until it is archived after all, `expire` forgets it when nothing comes to it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::look::{archive, report};
use crate::program::Call;
use crate::repository::{Repository, segment_key};

const NOTE: &str = "main/record/gap/1-00000001-0000000000408000-0000000000500000.json";
const REASON: &str = "requested WAL segment 000000010000000000000004 has already been removed";

fn name(number: u64) -> String {
    format!("{:024X}", (1u128 << 64) + u128::from(number))
}

/// Segment 4 is missing, of 1 to 9, between two backups.
fn with_gap(repository: &Repository) -> Vec<u8> {
    archive(repository);
    let note = json!({
        "format": "pgark-gap-1", "generation": 1, "timeline": 1, "from": "0/408000", "to": "0/500000",
        "reason": REASON, "found": "2026-11-22T10:02:00Z", "writer": "db1, pid 7, pgark 0",
    });
    repository.put(NOTE, note.to_string().as_bytes());
    let key = segment_key(&name(4));
    let object = repository.object(&key).unwrap();
    repository.remove(&key);
    object
}

fn expire(repository: &Repository, keep: &str) {
    let call = Call::new(["expire", "--force"]).impatient().envs(repository.env());
    let outcome = call.env("PGARK_RETENTION__KEEP_FULL", keep).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn status_tells_it_until_it_is_archived() {
    for repository in Repository::both() {
        let object = with_gap(&repository);
        let status = report(&repository, &["status", "--no-server"], 1);
        let lost = &status["lost"][0];
        assert_eq!((&lost["from"], &lost["to"]), (&"0/408000".into(), &"0/500000".into()), "{status}");
        assert_eq!((&lost["reason"], &lost["found"]), (&REASON.into(), &"2026-11-22T10:02:00Z".into()));
        let about = |status: &Value| -> Vec<String> {
            let findings = status["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == "gap");
            findings.map(|finding| finding["message"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(about(&status).len(), 1, "once is enough: {status}");
        let text = Call::new(["status", "--no-server"]).impatient().envs(repository.env()).run().stdout;
        assert!(text.contains("lost 0/408000 to 0/500000, found 2026-11-22T10:02:00Z: requested WAL"), "{text}");
        repository.put(&segment_key(&name(4)), &object);
        let status = report(&repository, &["status", "--no-server"], 1);
        assert_eq!((status["lost"].as_array().unwrap().len(), about(&status).len()), (0, 0), "{status}");
        // What cannot be read says nothing.
        repository.alter(NOTE, |bytes| bytes.truncate(9));
        report(&repository, &["status", "--no-server"], 1);
    }
}

#[test]
fn expire_forgets_it_when_nothing_comes_to_it() {
    for repository in Repository::both() {
        with_gap(&repository);
        for key in repository.keys() {
            repository.age(&key, Duration::from_secs(40 * 86_400));
        }
        expire(&repository, "10");
        assert!(repository.object(NOTE).is_some());
        // The backup from before goes, and then all that is known of it.
        expire(&repository, "1");
        expire(&repository, "1");
        assert!(repository.object(NOTE).is_none(), "{:?}", repository.keys());
    }
}
