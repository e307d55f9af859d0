//! The documents are true: their commands are read by pgark's own parser, their settings by its own reader, and the
//! restore by hand is carried out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use pgark::cli::args::Cli;

use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Cluster, Installation, Recovery, RecoveryTarget, Scratch};
use crate::program::Call;
use crate::repository::Repository;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md"), root().join("postgresql.conf.example")];
    for directory in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
        pages.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    pages
}

/// The fenced blocks of a language.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == format!("```{language}") {
            blocks.push(lines.by_ref().take_while(|line| line.trim() != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// What stands behind `pgark` or its whole path on a line, up to the end of the command.
fn calls(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in joined.lines().map(|line| line.split(" #").next().unwrap_or_default()) {
        let words: Vec<String> =
            line.split_whitespace().map(|word| word.trim_matches(['\'', '"', '`']).to_owned()).collect();
        let is_program = |word: &&String| *word == "pgark" || word.ends_with("/bin/pgark");
        let Some(at) = words.iter().position(|word| is_program(&word)) else { continue };
        // `install ... pgark`, `command -v pgark` and the like are no calls.
        let before = ["sudo", "postgres", "env", "-u", "=", "exec", "runuser", "--"];
        let called = words[..at].iter().all(|word| {
            before.contains(&word.as_str())
                || word.contains('=')
                || word.ends_with("_command")
                || word.starts_with("ExecStart")
        });
        if called && at + 1 < words.len() {
            let end = ["|", "||", "&&", ";", ">", "2>", "<"];
            calls.push(words[at..].iter().take_while(|word| !end.contains(&word.as_str())).cloned().collect());
        }
    }
    calls
}

#[test]
fn every_command_is_one_that_pgark_knows() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let mut texts = blocks(&page, "sh");
        texts.extend(blocks(&page, "ini"));
        if page.extension().is_some_and(|extension| extension == "example") {
            texts.push(fs::read_to_string(&page).unwrap());
        }
        for words in texts.iter().flat_map(|text| calls(text)) {
            seen += 1;
            if let Err(error) = Cli::try_parse_from(&words)
                && error.use_stderr()
            {
                wrong.push(format!("{}: {words:?}: {error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} calls were found");
}

#[test]
fn every_settings_file_can_be_read() {
    let mut seen = 0;
    for page in pages() {
        for block in blocks(&page, "toml") {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &block).unwrap();
            let path = file.path().display().to_string();
            let words = ["config", "show", "--config", &path, "--repo", "s3://bucket/pg"];
            let outcome = Call::new(words).without("PGARK_CONFIG").run();
            assert_eq!(outcome.code, 0, "{}: {block}\n{outcome:?}", page.display());
            seen += 1;
        }
    }
    assert!(seen >= 3, "only {seen} files were found");
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let path = page.parent().unwrap().join(file);
            assert!(path.exists(), "{} links to {target}", page.display());
        }
    }
}

/// The script of docs/restore-by-hand.md recovers a cluster without pgark.
#[test]
fn the_restore_by_hand_restores() {
    let page = root().join("docs/restore-by-hand.md");
    let script = blocks(&page, "sh")
        .into_iter()
        .find_map(|block| {
            let (_, rest) = block.split_once("sudo tee /usr/local/bin/fetch-wal <<'END'\n")?;
            Some(rest.split_once("\nEND")?.0.to_owned())
        })
        .expect("the page has the script");
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    let backup = primary.base_backup();
    ledger.write(30, 20_000);
    primary.archive_everything(Duration::from_secs(60));
    let place = Scratch::new("hand");
    let program = place.path().join("fetch-wal");
    assert!(script.contains("/srv/archive/"), "{script}");
    let archive = repository.url().trim_start_matches("file://").to_owned();
    fs::write(&program, script.replace("/srv/archive", &archive)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let restored = Cluster::from_basebackup(&backup);
    let command = format!("{} %f %p", program.display());
    restored.configure_recovery(&Recovery::new(command, RecoveryTarget::Latest));
    restored.start();
    restored.wait_promoted(Duration::from_secs(60));
    ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
    assert_clean(&restored);
}

/// The lines of postgresql.conf.example are settings of PostgreSQL, and archive.
#[test]
fn the_example_for_postgresql_conf_is_accepted() {
    let text = fs::read_to_string(root().join("postgresql.conf.example")).unwrap();
    let repository = Repository::local();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty());
    let mut builder = crate::pitr::with_environment(Cluster::builder(), &repository);
    for line in lines {
        let line = line.replace("/usr/local/bin/pgark", &crate::program::binary().display().to_string());
        builder = builder.conf(line.replace("/usr/bin/pgark", &crate::program::binary().display().to_string()));
    }
    let cluster = builder.start();
    cluster.execute("create table t ()");
    cluster.archive_everything(Duration::from_secs(60));
    assert!(!repository.keys().is_empty());
}

/// The reader that docs/format.md shows reads what pgark wrote, and refuses what was changed.
#[test]
fn the_reader_in_the_format_reads_and_refuses() {
    let python = ["/usr/bin/python3", "/usr/local/bin/python3"].into_iter().find(|path| Path::new(path).exists());
    let Some(python) = python else { return };
    let place = Scratch::new("reader");
    let script = place.path().join("read.py");
    fs::write(&script, blocks(&root().join("docs/format.md"), "python").concat()).unwrap();
    let repository = Repository::local();
    let cluster = crate::data_dir::FakeCluster::new();
    let name = "000000010000000000000001";
    cluster.segment(name, 1);
    cluster.file("00000002.history", b"1\t0/200000\tx\n");
    let read = |name: &str, key: &str, change: fn(&mut Vec<u8>)| {
        let mut bytes = repository.object(key).unwrap();
        change(&mut bytes);
        let object = place.path().join("object");
        fs::write(&object, bytes).unwrap();
        let mut reading = std::process::Command::new(python);
        reading.arg(&script).arg(&object).arg(name).output().unwrap()
    };
    for (name, key) in
        [(name, crate::repository::segment_key(name)), ("00000002.history", crate::repository::history_key("00000002"))]
    {
        repository.push(&cluster, name).run().quiet_success();
        let outcome = read(name, &key, |_| {});
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        let damages: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.truncate(bytes.len() - 1),
            |bytes| bytes[100] ^= 1,
            |bytes| bytes[7] = 1,
            |bytes| *bytes.last_mut().unwrap() ^= 1,
        ];
        for damage in damages {
            assert!(!read(name, &key, damage).status.success(), "{name}");
        }
    }
}
