//! The documents are true: their commands are read by pgark's own parser, their settings by its own reader, and the
//! restore by hand is carried out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use pgark::cli::args::Cli;

use crate::backups::take_backup;
use crate::ledger::{Expect, Ledger};
use crate::pitr::{archiving, assert_clean};
use crate::postgres::{Account, Cluster, Installation, Recovery, RecoveryTarget, Scratch, verify_directory};
use crate::program::Call;
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);

pub fn root() -> &'static Path {
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
pub fn blocks(page: &Path, language: &str) -> Vec<String> {
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
        let words = words(line);
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

/// The words of a line, as a shell splits them; of a quoted command its own.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut open: Option<char> = None;
    for letter in line.chars() {
        match (open, letter) {
            (Some(quote), letter) if letter == quote => open = None,
            (None, '\'' | '"' | '`') => open = Some(letter),
            (None, letter) if letter.is_whitespace() => words.push(String::new()),
            (_, letter) => words.last_mut().unwrap().push(letter),
        }
    }
    let own = |word: &String| word.split_whitespace().next().is_some_and(|first| first.ends_with("pgark"));
    let split = |word: String| match own(&word) {
        true => word.split_whitespace().map(str::to_owned).collect(),
        false => vec![word],
    };
    words.into_iter().filter(|word| !word.is_empty()).flat_map(split).collect()
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

/// The example of a whole strategy is one: all that the handbook asks for is due at some time, and nothing is misspelt.
#[test]
fn the_handbook_is_a_configuration() {
    let file = root().join("docs/examples/handbook.toml").display().to_string();
    Call::new(["config", "check", "--config", &file]).without("PGARK_CONFIG").run().code(0);
    let shown = Call::new(["config", "show", "--config", &file]).without("PGARK_CONFIG").run().code(0).stdout;
    for key in ["basebackup", "dump", "expire", "verify", "drill_full", "drill_pitr", "drill_disaster"] {
        let set = format!("schedule.{key} = ");
        assert!(shown.lines().any(|line| line.starts_with(&set)), "{key}: {shown}");
    }
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

/// docs/restore-by-hand.md, carried out: its checks, its way to unpack a backup and its script bring a cluster back without pgark.
#[test]
fn the_restore_by_hand_restores() {
    for with_tablespace in [false, true] {
        restore_by_hand(with_tablespace);
    }
}

fn restore_by_hand(with_tablespace: bool) {
    let page = root().join("docs/restore-by-hand.md");
    let place = Scratch::new("hand");
    let repository = Repository::local();
    let primary = archiving(&repository, Installation::preferred(), 1);
    if with_tablespace {
        let location = place.path().join("original");
        fs::create_dir(&location).unwrap();
        Account::of_servers().own(&location);
        primary.execute(&format!("create tablespace fast location '{}'", location.display()));
        primary.execute("create table beside tablespace fast as select generate_series(1, 1000) as i");
    }
    let ledger = Ledger::create(&primary);
    ledger.write(10, 1000);
    let id = take_backup(&repository, &primary, &["--label", "by hand"]);
    ledger.write(30, 20_000);
    primary.archive_everything(A_MINUTE);

    // The page's places become those of this test.
    let data = place.path().join("data");
    let fast = place.path().join("fast");
    let archive = repository.url().trim_start_matches("file://").to_owned();
    let oid = primary.value("select coalesce(max(oid), 0) from pg_tablespace where spcname = 'fast'");
    let here = |script: &str| {
        let script = script.replace("20261122T231805Z-0a1b2c3d", &id).replace("/srv/archive", &archive);
        let script = script.replace("/var/lib/postgresql/15/main", &data.display().to_string());
        script.replace("/srv/fast", &fast.display().to_string()).replace("16389", &oid)
    };
    let block = |words: &[&str]| {
        let fits = |block: &String| words.iter().all(|word| block.contains(word)) && !block.contains("s3://");
        let mut found = blocks(&page, "sh").into_iter().filter(fits);
        found.next().unwrap_or_else(|| panic!("the page has no block with {words:?}"))
    };
    let run = |script: &str| {
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &here(script)]);
        let output = Account::of_servers().run(&mut bash).output().unwrap();
        assert!(output.status.success(), "{}\n{}", here(script), String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };

    let checked = run(&block(&["sha256sum -c"]));
    let parts = repository.keys().into_iter().filter(|key| key.contains(&format!("{id}/part/"))).count();
    assert_eq!(checked.lines().filter(|line| line.ends_with(": OK")).count(), parts, "{checked}");
    let unpack = if with_tablespace { block(&["--keep-directory-symlink"]) } else { block(&["tar x -C"]) };
    run(heredoc(&unpack, "sudo -u postgres bash <<'END'\n"));
    verify_directory(primary.installation(), &data).unwrap();

    let program = place.path().join("fetch-wal");
    let script = block(&["tee /usr/local/bin/fetch-wal "]);
    fs::write(&program, here(heredoc(&script, "sudo tee /usr/local/bin/fetch-wal <<'END'\n"))).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let restored = Cluster::builder().on_directory(&data);
    let command = format!("{} %f %p", program.display());
    restored.configure_recovery(&Recovery::new(command, RecoveryTarget::Latest));
    restored.start();
    restored.wait_promoted(A_MINUTE);
    ledger.judge(&restored, &Expect::at_least(ledger.tip())).unwrap();
    assert_clean(&restored);
    if with_tablespace {
        assert_eq!(restored.value("select count(*) from beside"), "1000");
        assert_eq!(restored.value(&format!("select pg_tablespace_location({oid})")), fast.display().to_string());
    }
}

/// docs/dumps.md, carried out: a dump that pgark took is restored without it.
#[test]
fn the_dump_restored_by_hand_is_the_database() {
    let repository = Repository::local();
    let cluster = crate::dumps::server(Installation::preferred());
    cluster.execute("create role reader");
    cluster.execute("create database shop");
    crate::dumps::sql(
        &cluster,
        "shop",
        "create table t as select generate_series(1, 1000) as i; grant select on t to reader",
    );
    let id = crate::dumps::take_dump(&repository, &cluster, &["--globals", "--database", "shop"]);
    let copy = crate::dumps::server(Installation::preferred());
    copy.execute("create database shop template template0");
    let place = Scratch::new("hand");
    Account::of_servers().own(place.path());
    let archive = repository.url().trim_start_matches("file://").to_owned();
    let found =
        blocks(&root().join("docs/dumps.md"), "sh").into_iter().find(|block| block.contains("pg_restore --dbname"));
    let script = found.unwrap().replace("20261122T010000Z-0a1b2c3d", &id).replace("/srv/archive", &archive);
    let script = script.replace("/tmp/globals.sql", &place.path().join("globals.sql").display().to_string());
    // The page says so of the globals in words.
    let globals = format!("psql -qf {}/globals.sql", place.path().display());
    let script = script.replace("cat 000002", &format!("{globals} || true\ncat 000002"));
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &script]).env("PGHOST", &copy.endpoint().socket_directory);
    bash.env("PGPORT", copy.endpoint().port.to_string()).env("PGUSER", "postgres");
    let bin = Installation::preferred().with_dump_programs().bin.display().to_string();
    bash.env("PATH", format!("{bin}:/usr/bin:/bin"));
    let output = Account::of_servers().run(&mut bash).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{said}");
    assert!(said.contains("\"format\":\"pgark-dump-1\""), "{said}");
    let counted =
        crate::dumps::sql(&copy, "shop", "select count(*), has_table_privilege('reader', 't', 'select') from t");
    assert_eq!(counted, [["1000", "t"]]);
}

/// What a block gives to a program as a here-document.
fn heredoc<'a>(block: &'a str, opening: &str) -> &'a str {
    let (_, rest) = block.split_once(opening).unwrap_or_else(|| panic!("no {opening:?} in {block}"));
    rest.split_once("\nEND").expect("the here-document ends").0
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
    cluster.archive_everything(A_MINUTE);
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
        let mut reading = Command::new(python);
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
