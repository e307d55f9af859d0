//! Several servers in one conninfo: the one that is wanted is found, and is found again after a failover.

use std::net::TcpListener;
use std::time::Duration;

use crate::ledger::Ledger;
use crate::postgres::{Cluster, Installation, StopMode, happens_within};
use crate::program::{Call, Outcome};
use crate::reaching_postgres::{check, server_line};
use crate::repository::{Repository, history_key, segment_key};
use crate::wal_receive::{Running, end, judge, judged_if_any, stored};

const A_MINUTE: Duration = Duration::from_secs(60);

/// A standby of this server that streams from it.
fn standby_of(primary: &Cluster) -> Cluster {
    let standby = Cluster::from_basebackup(&primary.base_backup());
    standby.configure("wal_keep_size = '1GB'");
    standby.configure_standby("", Some(&primary.endpoint().conninfo()));
    standby.start();
    standby
}

/// All of them, in this order.
fn conninfo(clusters: &[&Cluster], rest: &str) -> String {
    let list = |of: &dyn Fn(&Cluster) -> String| clusters.iter().map(|c| of(c)).collect::<Vec<_>>().join(",");
    let hosts = list(&|cluster| cluster.endpoint().socket_directory.display().to_string());
    let ports = list(&|cluster| cluster.endpoint().port.to_string());
    format!("host={hosts} port={ports} user=postgres dbname=postgres {rest}")
}

fn receive(repository: &Repository, conninfo: &str, words: &[&str]) -> Call {
    let words: Vec<&str> = ["wal-receive", "--create-slot"].into_iter().chain(words.iter().copied()).collect();
    let call = Call::new(words).impatient().envs(repository.env());
    call.env("PGARK_CLUSTER__CONNINFO", conninfo).env("PGARK_RECEIVE__FLUSH", "200ms")
}

fn streams_from(cluster: &Cluster) -> bool {
    cluster.value("select count(*) from pg_stat_replication where application_name = 'pgark'") == "1"
}

#[test]
fn the_server_that_is_wanted_is_taken() {
    for installation in Installation::all_wanted() {
        let primary = Cluster::builder().installation(installation).conf("archive_mode = off").start();
        let standby = standby_of(&primary);
        let frozen = Cluster::builder().installation(installation).conf("default_transaction_read_only = on").start();
        let repository = Repository::local();
        for (clusters, target, refusal) in [
            (vec![&standby], "any", None),
            (vec![&primary], "read-write", None),
            (vec![&standby], "read-write", Some("it is a standby")),
            (vec![&frozen], "read-write", Some("its sessions are read-only")),
            (vec![&primary], "read-only", Some("its sessions are read-write")),
            (vec![&standby], "read-only", None),
            (vec![&frozen], "read-only", None),
            (vec![&primary], "primary", None),
            (vec![&frozen], "primary", None),
            (vec![&standby], "primary", Some("it is a standby")),
            (vec![&primary], "standby", Some("it is a primary")),
            (vec![&standby], "standby", None),
            (vec![&primary], "prefer-standby", None),
            (vec![&standby, &primary], "primary", None),
            (vec![&primary, &standby], "standby", None),
            (vec![&standby, &standby], "read-write", Some("it is a standby; ")),
        ] {
            let name = format!("PostgreSQL {}, {} servers, {target}", installation.version, clusters.len());
            let conninfo = conninfo(&clusters, &format!("target_session_attrs={target}"));
            let said = server_line(check(&repository, &conninfo));
            assert_eq!(said.starts_with("OK"), refusal.is_none(), "{name}: {said}");
            assert!(said.contains(refusal.unwrap_or_default()), "{name}: {said}");
            // A walsender says the same of itself. What it is asked for does not matter.
            let remote = receive(&repository, &conninfo, &["--once-to", "0/1"]).run();
            let refused = remote.stderr.contains("cannot connect to PostgreSQL for replication");
            assert_eq!(refused, refusal.is_some(), "{name}: {remote:?}");
            assert!(remote.stderr.contains(refusal.unwrap_or_default()), "{name}: {remote:?}");
        }
        // The variable counts as much, and there is advice.
        let call = receive(&repository, &conninfo(&[&standby], ""), &[]).env("PGTARGETSESSIONATTRS", "primary");
        call.run().code(17).says("it is a standby").says("hint: `target_session_attrs=primary` takes none");
        // The standby is taken, though the primary is named first.
        let preferring = conninfo(&[&primary, &standby], "target_session_attrs=prefer-standby");
        let receiver = Running::start(&receive(&repository, &preferring, &[]));
        standby.wait_until("streaming", A_MINUTE, || streams_from(&standby));
        assert!(!streams_from(&primary));
        let outcome = receiver.stop();
        assert_eq!(outcome.code, 0, "{outcome:?}");
    }
}

/// One that accepts and says nothing, one that is not there, and one that is.
#[test]
fn a_server_that_says_nothing_is_passed() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let cluster = Cluster::builder().start();
    let (directory, its) = (cluster.endpoint().socket_directory.display(), cluster.endpoint().port);
    let rest = "user=postgres dbname=postgres connect_timeout=2 sslmode=disable";
    let repository = Repository::local();
    let all = format!("host=127.0.0.1,/nonexistent,{directory} port={port},1,{its} {rest}");
    assert!(server_line(check(&repository, &all)).starts_with("OK"));
    let to = end(&cluster).to_string();
    let receive = |conninfo: &str| -> Outcome { receive(&repository, conninfo, &["--once-to", &to]).run() };
    receive(&all).code(0);
    // Each is named with its reason.
    let none = format!("host=127.0.0.1,/nonexistent port={port},1 {rest}");
    let none = receive(&none).code(17).says(&format!("`127.0.0.1`, port {port}: no answer within 2 s"));
    none.says("`/nonexistent`, port 1: No such file");
}

#[test]
fn a_failover_is_followed_to_the_new_primary() {
    for target in ["primary", "read-write"] {
        let repository = Repository::s3();
        let primary = Cluster::builder().conf("wal_keep_size = '1GB'").conf("archive_mode = off").start();
        let ledger = Ledger::create(&primary);
        let standby = standby_of(&primary);
        let both = conninfo(&[&primary, &standby], &format!("target_session_attrs={target}"));
        let receiver = Running::start(&receive(&repository, &both, &[]));
        ledger.write(10, 100_000);
        let sent = end(&primary);
        assert!(happens_within(A_MINUTE, || judged_if_any(&repository, &primary, 1) >= sent));
        standby.wait_until("received", A_MINUTE, || end(&standby) >= sent);
        primary.stop(StopMode::Immediate);
        standby.promote();
        standby.wait_promoted(A_MINUTE);
        standby.execute("create table after_promotion as select generate_series(1, 50000) i");
        let to = end(&standby);
        assert!(happens_within(A_MINUTE, || {
            repository.keys().contains(&history_key("00000002")) && judged_if_any(&repository, &standby, 2) >= to
        }));
        assert!(streams_from(&standby));
        let outcome = receiver.stop();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(judge(&repository, &standby, 2) >= to);
    }
}

/// What one server has removed another may still have, and recycles as soon as it is told that it is durable.
#[test]
fn a_gap_of_one_server_is_closed_from_another() {
    let repository = Repository::s3();
    let keeping = Cluster::builder().conf("archive_mode = off").conf("wal_keep_size = '1GB'");
    let primary = keeping.conf("max_wal_size = '2MB'").start();
    let ledger = Ledger::create(&primary);
    let standby = standby_of(&primary);
    primary.execute("select pg_create_physical_replication_slot('standby', true)");
    standby.configure("primary_slot_name = 'standby'");
    standby.reload();
    primary.wait_until("streaming", A_MINUTE, || {
        primary.value("select active from pg_replication_slots where slot_name = 'standby'") == "t"
    });
    for cluster in [&primary, &standby] {
        cluster.execute("select pg_create_physical_replication_slot('pgark', true)");
    }
    let both = conninfo(&[&primary, &standby], "");
    ledger.write(3, 300_000);
    receive(&repository, &both, &["--once-to", &end(&primary).to_string()]).run().code(0);
    primary.execute("select pg_drop_replication_slot('pgark')");
    primary.configure("wal_keep_size = 0");
    primary.reload();
    for _ in 0..6 {
        ledger.write(3, 300_000);
        primary.switch_wal();
        primary.execute("checkpoint");
    }
    let receiver = Running::start(&receive(&repository, &both, &[]));
    primary.wait_until("streaming", A_MINUTE, || streams_from(&primary));
    ledger.write(3, 300_000);
    let last = primary.switch_wal();
    assert!(happens_within(A_MINUTE, || repository.keys().contains(&segment_key(&last))));
    let gaps = repository.keys().iter().filter(|key| key.contains("/record/gap/")).count();
    assert_eq!(gaps, 1, "{:?}", repository.keys());
    let to = end(&primary);
    standby.wait_until("received", A_MINUTE, || end(&standby) >= to);
    primary.stop(StopMode::Immediate);
    standby.wait_until("streaming", A_MINUTE, || streams_from(&standby));
    let closed = happens_within(A_MINUTE, || judge(&repository, &standby, 1) >= to);
    assert!(closed, "{:?}", stored(&repository, 1).0);
    let outcome = receiver.stop();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    // The note stays, and nothing is lost.
    let outcome = receive(&repository, &both, &["--once-to", &to.to_string()]).run();
    assert_eq!(outcome.code, 0, "{outcome:?}");
}
