//! Data behind symbolic links: PostgreSQL follows them, a base backup does not. Either the backup has everything, or there is none.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::backups::{Restored, as_servers_user, on_the_host, restore};
use crate::ledger::{Expect, Ledger};
use crate::pitr::archiving;
use crate::postgres::{Account, Cluster, Installation, Scratch, StopMode};
use crate::repository::Repository;

const A_MINUTE: Duration = Duration::from_secs(60);
const BAD_INPUT: i32 = 3;

/// Moves what is there elsewhere, and leaves a link.
fn link_away(cluster: &Cluster, path: &str, elsewhere: &Path) -> PathBuf {
    let (from, to) = (cluster.data_dir().join(path), elsewhere.join(path.replace('/', "-")));
    rename(&from, &to);
    symlink(&to, &from).unwrap();
    to
}

fn rename(from: &Path, to: &Path) {
    let mut moving = Command::new("mv");
    assert!(Account::of_servers().run(moving.arg("-T").args([from, to])).status().unwrap().success());
}

#[test]
fn no_backup_without_data_behind_links() {
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        let ledger = Ledger::create(&primary);
        ledger.write(20, 5000);
        let database = primary.value("SELECT 'base/' || oid FROM pg_database WHERE datname = 'postgres'");
        let relation = primary.value("SELECT pg_relation_filepath('ledger')");
        primary.execute("CHECKPOINT");
        let elsewhere = Scratch::new("elsewhere");
        for path in ["base", "global", "pg_xact", "pg_multixact/members", &database, &relation] {
            primary.stop(StopMode::Fast);
            let there = link_away(&primary, path, elsewhere.path());
            primary.start();
            for words in [&["basebackup"][..], &["basebackup", "--remote"]] {
                let outcome = as_servers_user(&on_the_host(&repository, &primary, words));
                let outcome =
                    outcome.code(BAD_INPUT).says("no backup was made").says(path).says("hint: stop the server");
                assert_eq!(outcome.stdout, "", "{words:?}");
            }
            primary.stop(StopMode::Fast);
            std::fs::remove_file(primary.data_dir().join(path)).unwrap();
            rename(&there, &primary.data_dir().join(path));
            primary.start();
        }
        assert!(!repository.keys().iter().any(|key| key.contains("manifest")), "{:?}", repository.keys());

        // What a cluster can do without is only said.
        for name in ["notes", "pg_stat_tmp"] {
            let place = elsewhere.path().join(name);
            std::fs::create_dir(&place).unwrap();
            Account::of_servers().own(&place);
            let link = primary.data_dir().join(name);
            std::fs::remove_dir_all(&link).ok();
            symlink(&place, &link).unwrap();
        }
        let conf = link_away(&primary, "pg_ident.conf", elsewhere.path());
        for words in [&["basebackup"][..], &["basebackup", "--remote"]] {
            let outcome = as_servers_user(&on_the_host(&repository, &primary, words)).code(0);
            let outcome = outcome.says("notes").says("pg_ident.conf");
            assert!(!outcome.stderr.contains("pg_stat_tmp"), "{outcome:?}");
            ledger.write(5, 1000);
            primary.archive_everything(A_MINUTE);
            let Restored { cluster, home: _home } = restore(&repository, &[]);
            std::fs::copy(&conf, cluster.data_dir().join("pg_ident.conf")).unwrap();
            cluster.start();
            cluster.wait_promoted(A_MINUTE);
            ledger.judge(&cluster, &Expect::at_least(ledger.tip())).unwrap();
        }
    }
}
