//! Manifests that somebody wrote to do harm: each is refused for what is wrong with it, nothing is written outside of the target,
//! nothing starts there, and memory stays bounded.

use std::io::Write;

use serde_json::{Value, json};

use crate::manifest_draft::{Stage, packed};
use crate::postgres::Installation;
use crate::restore_faults::manifest_key;

/// The same bytes with nothing wrong are restored: what is refused below is refused for what is wrong with it.
#[test]
fn what_is_right_is_accepted() {
    let stage = Stage::set();
    stage.is_accepted(&stage.draft().write());
}

#[test]
fn names_that_lead_out() {
    let stage = Stage::set();
    let absolute = stage.place.path().join("escaped").display().to_string();
    let long = "n".repeat(300);
    let deep = ["d"; 40].join("/");
    let names = [
        absolute.as_str(),
        "/etc/passwd",
        "../escaped",
        "base/../../escaped",
        "base/./1",
        "base//1",
        "base/",
        "",
        ".",
        "..",
        "a\0b",
        "a%00b",
        "%2e%2e/escaped",
        "%2E%2E/escaped",
        "%2Fetc/passwd",
        "base/%2e%2e/%2e%2e/escaped",
        "base%2F1",
        "bas%65/1",
        "a%",
        "a%zz",
        "a%+1",
        "ä",
        "a\nb",
        &long,
        &deep,
    ];
    for name in names {
        let mut draft = stage.draft();
        draft.files[0]["file"] = json!(name);
        stage.is_refused(&format!("a file `{name}`"), "is no path inside a data directory", &draft.write());
    }
    for name in [absolute.as_str(), "../escaped", "%2e%2e", "base/..", "..", "", "a\0b"] {
        let mut draft = stage.draft();
        draft.directories[0]["directory"] = json!(name);
        stage.is_refused(&format!("a directory `{name}`"), "is no path inside a data directory", &draft.write());
    }
    for name in [".pgark-restoring", "global/.pgark-pg_control", ".pgark-new-recovery.signal"] {
        let mut draft = stage.draft();
        draft.files[0]["file"] = json!(name);
        draft.files.sort_by_key(|line| line["file"].as_str().unwrap().to_owned());
        stage.is_refused(name, "pgark's own", &draft.write());
    }
}

#[test]
fn entries_that_do_not_fit_together() {
    let stage = Stage::set();
    stage.play(&[
        ("a file twice", "occurs twice", &|d| d.files[1] = d.files[0].clone()),
        ("a directory twice", "occurs twice", &|d| d.directories[1] = d.directories[0].clone()),
        ("files out of order", "out of order", &|d| d.files.swap(0, 1)),
        ("a file that is a directory", "occurs twice", &|d| d.file("base/1/1259")["file"] = json!("base/1")),
        ("a file below a file", "not listed", &|d| {
            let below = json!({"file": "PG_VERSION/1", "mode": 384, "size": 0, "modified": 0, "extents": []});
            d.files.insert(1, below);
        }),
        ("a parent that is not listed", "not listed", &|d| d.directories.retain(|line| line["directory"] != "base/1")),
        ("a directory behind files", "out of order", &|d| {
            d.more.push("{\"directory\":\"zz\",\"mode\":448}\n".into());
        }),
        ("a setuid file", "has the mode", &|d| d.files[0]["mode"] = json!(0o4755)),
        ("a sticky directory", "has the mode", &|d| d.directories[0]["mode"] = json!(0o1777)),
        ("a mode of all bits", "has the mode", &|d| d.files[0]["mode"] = json!(u32::MAX)),
        ("a mode that is negative", "invalid value", &|d| d.files[0]["mode"] = json!(-1)),
        ("no label", "backup_label", &|d| d.files.retain(|line| line["file"] != "backup_label")),
        ("no pg_control", "pg_control", &|d| d.files.retain(|line| line["file"] != "global/pg_control")),
        ("no version", "PG_VERSION", &|d| d.files.retain(|line| line["file"] != "PG_VERSION")),
        ("another file as label", "backup_label", &|d| {
            let other = d.file("PG_VERSION").clone();
            let label = d.file("backup_label");
            (label["extents"], label["size"]) = (other["extents"].clone(), other["size"].clone());
            d.files.retain(|line| line["file"] != "PG_VERSION");
            let mut version = d.file("postgresql.auto.conf").clone();
            version["file"] = json!("PG_VERSION");
            d.files.retain(|line| line["file"] != "postgresql.auto.conf");
            d.files.insert(0, version);
        }),
    ]);
}

#[test]
fn parts_and_extents_that_cannot_be() {
    let stage = Stage::set();
    const FILE: &str = "base/1/1259";
    stage.play(&[
        ("parts out of order", "is due", &|d| d.parts.swap(0, 1)),
        ("part 0", "is due", &|d| d.parts[0]["part"] = json!(0)),
        ("a huge number", "is due", &|d| d.parts[1]["part"] = json!(u32::MAX)),
        ("a number beyond all", "invalid value", &|d| d.parts[1]["part"] = json!(u64::MAX)),
        ("a part twice", "", &|d| d.parts[1] = d.parts[0].clone()),
        ("an empty part", "is due", &|d| d.parts[0]["stored"] = json!(0)),
        ("a part beyond all", "is due", &|d| d.parts.iter_mut().for_each(|part| part["stored"] = json!(u64::MAX))),
        ("no parts", "there is no part", &|d| d.parts.clear()),
        ("a longer part", "part/00000001", &|d| d.parts[0]["stored"] = json!(1 << 30)),
        ("extents in no part", "there is no part", &|d| d.extent(FILE)["part"] = json!(77)),
        ("extents in part 0", "there is no part", &|d| d.extent(FILE)["part"] = json!(0)),
        ("beyond the part", "cannot be", &|d| d.extent(FILE)["at"] = json!(1u64 << 40)),
        ("beyond all", "cannot be", &|d| d.extent(FILE)["at"] = json!(u64::MAX)),
        ("longer than the part", "cannot be", &|d| d.extent(FILE)["stored"] = json!(u64::MAX)),
        ("nothing stored", "cannot be", &|d| d.extent(FILE)["stored"] = json!(0)),
        ("headers beyond all", "cannot be", &|d| d.extent(FILE)["skip"] = json!(u32::MAX)),
        ("two files in one place", "in one place", &|d| {
            let at = d.extent("base/1/1247")["at"].clone();
            d.extent(FILE)["at"] = at;
        }),
        ("plain beyond all", "cannot be", &|d| d.extent(FILE)["plain"] = json!(u64::MAX)),
        ("a size that is not there", "its extents have", &|d| d.file(FILE)["size"] = json!(u64::MAX)),
        ("an extent that holds less", "`", &|d| {
            d.extent(FILE)["plain"] = json!(1 << 30);
            d.file(FILE)["size"] = json!(1 << 30);
        }),
        ("frames that do not add up", "frames", &|d| d.extent(FILE)["frames"] = json!([1, 2, 3])),
        ("frames beyond all", "frames", &|d| d.extent(FILE)["frames"] = json!(vec![u32::MAX; 1000])),
        ("extents without end", "extents", &|d| {
            let extent = d.extent(FILE).clone();
            d.file(FILE)["extents"] = json!(vec![extent; 100_000]);
        }),
        ("another digest", "digest", &|d| d.extent(FILE)["sha256"] = json!("00".repeat(32))),
        ("half a number", "invalid", &|d| d.extent(FILE)["at"] = json!(0.5)),
    ]);
}

#[test]
fn summaries_of_something_else() {
    let stage = Stage::set();
    let unreachable: &[(&str, &str, Value)] = &[
        ("id", "manifest of", json!("20200101T000000Z-00000000")),
        ("id", "", json!("../../escaped")),
        ("generation", "manifest of", json!(2)),
        ("generation", "", json!(0)),
        ("format", "another version", json!("pgark-backup-9")),
        ("system_identifier", "another cluster", json!("1")),
        ("postgres_major", "", json!(99)),
        ("timeline", "", json!(0)),
        ("segment_size", "", json!(3)),
        ("stop_lsn", "", json!("0/0")),
        ("start_lsn", "", json!("F/F/F")),
        ("started", "", json!("yesterday")),
        ("files", "", json!(u64::MAX)),
        ("parts", "", json!(-1)),
    ];
    for (key, said, value) in unreachable {
        let mut draft = stage.draft();
        draft.write();
        draft.sums = false;
        draft.summary[*key] = value.clone();
        stage.is_refused(&format!("{key} {value}"), said, &draft.write());
    }
    let damaged: &[(&str, u64)] =
        &[("files", 1), ("files", 4_000_001), ("plain_bytes", 7), ("parts", 1), ("stored_bytes", 1), ("bad_pages", 1)];
    for (key, value) in damaged {
        let mut draft = stage.draft();
        draft.write();
        draft.sums = false;
        draft.summary[*key] = json!(value);
        stage.is_refused(&format!("{key} {value}"), "summary", &draft.write());
    }
}

/// The digests are right: only the claim is absurd.
#[test]
fn wal_without_end() {
    let stage = Stage::set();
    for stop in ["7FFFFFFF/0", "FFFFFFFF/FFFFFFFF"] {
        let mut draft = stage.draft();
        draft.summary["stop_lsn"] = json!(stop);
        let manifest = draft.write();
        stage.is_refused(stop, "", &manifest);
        stage.repository.alter(&manifest_key(&stage.id), |bytes| *bytes = manifest);
        let found = stage.look(&["verify", &stage.id]);
        assert_eq!(found.code, 2, "{found:?}");
        assert_eq!(found.stdout.matches("MISSING").count(), 1, "{found:?}");
        assert!(found.stdout.contains(" more up to `00000001"), "{found:?}");
    }
}

#[test]
fn tablespaces_that_lead_elsewhere() {
    let stage = Stage::set();
    let here = stage.place.path();
    let inside = stage.target().join("base").display().to_string();
    let full = here.join("inner/full").display().to_string();
    let parent = here.join("inner").display().to_string();
    let nul = format!("{}/a\0b", here.display());
    let dotted = format!("{}/x/../../etc", here.display());
    let around = stage.target().join("..").display().to_string();
    for location in ["/", "", "relative/place", "..", &inside, &full, &parent, &nul, &dotted, &around, "/proc/pgark"] {
        let mut draft = stage.draft();
        draft.summary["tablespaces"] = json!([{"oid": 5000, "location": location}]);
        let at = draft.directories.iter().position(|line| line["directory"] == "pg_tblspc").unwrap() + 1;
        draft.directories.insert(at, json!({"directory": "pg_tblspc/5000", "mode": 0o700}));
        stage.is_refused(&format!("a tablespace at `{location}`"), "", &draft.write());
    }
    let beside = here.join("beside").display().to_string();
    let twice = json!([{"oid": 5000, "location": beside}, {"oid": 5000, "location": format!("{beside}2")}]);
    let shared = json!([{"oid": 5000, "location": beside}, {"oid": 5001, "location": beside}]);
    for (tablespaces, said) in
        [(twice, "occurs twice"), (shared, "share a place"), (json!([{"oid": 6, "location": beside}]), "no directory")]
    {
        let mut draft = stage.draft();
        draft.summary["tablespaces"] = tablespaces;
        let at = draft.directories.iter().position(|line| line["directory"] == "pg_tblspc").unwrap() + 1;
        for oid in [5000, 5001] {
            let at = at + oid - 5000;
            draft.directories.insert(at, json!({"directory": format!("pg_tblspc/{oid}"), "mode": 0o700}));
        }
        stage.is_refused(said, said, &draft.write());
    }
}

/// A tablespace's directory may be anybody's, `~/.ssh` for one: only the directory of PostgreSQL's version may be made there.
#[test]
fn tablespaces_with_files_that_are_not_postgresqls() {
    let stage = Stage::set();
    let beside = stage.place.path().join("beside").display().to_string();
    let draft = |more: &[(&str, bool)]| {
        let mut draft = stage.draft();
        draft.summary["tablespaces"] = json!([{"oid": 5000, "location": beside}]);
        draft.directories.push(json!({"directory": "pg_tblspc/5000", "mode": 0o700}));
        for (path, is_file) in more {
            match is_file {
                true => draft.files.push(json!({"file": path, "mode": 0o600, "size": 0, "modified": 0, "extents": []})),
                false => draft.directories.push(json!({"directory": path, "mode": 0o700})),
            }
        }
        draft.directories.sort_by_key(|line| line["directory"].as_str().unwrap().to_owned());
        draft.files.sort_by_key(|line| line["file"].as_str().unwrap().to_owned());
        draft.write()
    };
    let major = Installation::preferred().major;
    let other = format!("pg_tblspc/5000/PG_{}_1", major - 1);
    let odd = format!("pg_tblspc/5000/PG_{major}_x");
    for (path, is_file) in
        [("pg_tblspc/5000/authorized_keys", true), ("pg_tblspc/5000/cron.d", false), (&other, false), (&odd, false)]
    {
        stage.is_refused(path, "for this version", &draft(&[(path, is_file)]));
    }
    let whole = format!("pg_tblspc/5000/PG_{major}_202209061");
    stage.repository.alter(&manifest_key(&stage.id), |bytes| *bytes = draft(&[(&whole, false)]));
    let outcome = stage.restore().code(0);
    assert!(outcome.stdout.contains(&format!("of tablespace 5000 to {beside}\n")), "{outcome:?}");
}

#[test]
fn bytes_that_are_no_manifest() {
    let stage = Stage::set();
    let whole = stage.draft().write();
    let plain = String::from_utf8(zstd::decode_all(&whole[..]).unwrap()).unwrap();
    let (first, rest) = plain.split_once('\n').unwrap();
    let first = format!("{first}\n");
    let (body, end) = rest.trim_end().rsplit_once('\n').unwrap();
    let two = |rest: &str| {
        [zstd::encode_all(first.as_bytes(), 3).unwrap(), zstd::encode_all(rest.as_bytes(), 3).unwrap()].concat()
    };
    let cases: [(&str, &str, Vec<u8>); 14] = [
        ("nothing", "", Vec::new()),
        ("no zstd", "", plain.clone().into_bytes()),
        ("a summary alone", "its last one", zstd::encode_all(first.as_bytes(), 3).unwrap()),
        ("no end", "its last one", two(&format!("{body}\n"))),
        ("a last line that is cut", "within a line", two(&format!("{body}\n{}", &end[..20]))),
        ("a last line without its end", "within a line", two(&format!("{body}\n{end}"))),
        ("a line behind the end", "behind its last line", two(&format!("{body}\n{end}\n{{}}\n"))),
        ("an object behind the end", "behind its last line", two(&format!("{body}\n{end}\n{end}\n"))),
        (
            "an end that counts wrong",
            "does not fit",
            two(&format!("{body}\n{}\n", end.replace("\"lines\":", "\"lines\":1"))),
        ),
        (
            "a line that is not counted",
            "more bad pages",
            two(&format!("{{\"bad_page\":\"base\",\"block\":1}}\n{body}\n{end}\n")),
        ),
        ("a line of another kind", "line 2", two(&format!("{{\"link\":\"/etc\"}}\n{body}\n{end}\n"))),
        ("bytes that are no text", "line 2", two(&format!("\u{fffd}\u{0}\n{body}\n{end}\n"))),
        ("depth", "line 2", two(&format!("{{\"file\":{}\n{body}\n{end}\n", "[".repeat(1_000_000)))),
        (
            "depth in the summary",
            "",
            zstd::encode_all(format!("{}\n{rest}", "[".repeat(900_000)).as_bytes(), 3).unwrap(),
        ),
    ];
    for (what, said, manifest) in cases {
        stage.is_refused(what, said, &manifest);
    }
}

/// A few hundred kilobytes that want to become gigabytes.
#[test]
fn bombs() {
    let stage = Stage::set();
    let mut draft = stage.draft();
    draft.write();
    let first = draft.first();
    let lines: Vec<String> = draft.lines().collect();
    let blanks = |count: usize| std::iter::repeat_n(" ".repeat(1 << 20), count);
    stage.is_refused("a line of blanks", "within a line", &packed(&first, blanks(1024)));
    let in_front = std::iter::once(first.clone());
    stage.is_refused("a summary of blanks", "", &packed("", blanks(1024).chain(in_front)));
    let directories = |count: u32| (0..count).map(|n| format!("{{\"directory\":\"a{n:09}\",\"mode\":448}}\n"));
    stage.is_refused("ten million directories", "more directories", &packed(&first, directories(10_000_000)));
    let files = |count: u32| {
        let line = |n| format!("{{\"file\":\"a{n:09}\",\"mode\":384,\"size\":0,\"modified\":0,\"extents\":[]}}\n");
        (0..count).map(line)
    };
    stage.is_refused(
        "files without end",
        "more files",
        &packed(&first, lines[..2].iter().cloned().chain(files(200_000))),
    );
    let mut many = stage.draft();
    many.add_up();
    many.summary["files"] = json!(10_000_000);
    stage.is_refused("ten million files, and so promised", "promises", &packed(&many.first(), files(1000)));
    let frames = "0,".repeat(7 << 20);
    let mut huge = many.clone();
    huge.add_up();
    let extent = format!(
        "{{\"part\":1,\"at\":0,\"stored\":9,\"skip\":0,\"plain\":1,\"sha256\":\"{}\",\"frames\":[{frames}9]}}",
        "00".repeat(32)
    );
    let long = (0..300)
        .map(|n| format!("{{\"file\":\"a{n:09}\",\"mode\":384,\"size\":1,\"modified\":0,\"extents\":[{extent}]}}\n"));
    stage.is_refused("frames without end", "frames", &packed(&huge.first(), lines[..2].iter().cloned().chain(long)));

    // The first part is another one, of the same length: a frame that unpacks to a gigabyte, then rubbish.
    let part = format!("main/1/backup/{}/part/00000001.tar.zst", stage.id);
    let part = stage.repository.keys().into_iter().find(|key| *key == part).expect(&part);
    let whole = stage.repository.object(&part).unwrap();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    blanks(1024).for_each(|blanks| encoder.write_all(blanks.as_bytes()).unwrap());
    let mut bomb = encoder.finish().unwrap();
    assert!(bomb.len() < whole.len());
    bomb.resize(whole.len(), 0);
    stage.repository.alter(&part, |bytes| *bytes = bomb);
    for file in ["PG_VERSION", "base/1/1259"] {
        let mut draft = stage.draft();
        let length = whole.len();
        draft.files.retain(|line| {
            let extents = line["extents"].as_array().unwrap();
            line["file"] == file || extents.iter().all(|extent| extent["part"] != 1)
        });
        let extent = draft.extent(file);
        (extent["at"], extent["stored"]) = (json!(0), json!(length));
        extent.as_object_mut().unwrap().remove("frames");
        if file != "PG_VERSION" {
            let mut version = draft.file("backup_label").clone();
            version["file"] = json!("PG_VERSION");
            version["extents"] = json!([]);
            version["size"] = json!(0);
            draft.files.insert(0, version);
        }
        stage.is_refused("a part that unpacks without end", "more than", &draft.write());
    }
}
