//! Logical dumps of real servers: what `dump` stores, `dump-restore` brings back equal.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::backups::as_servers_user;
use crate::postgres::{Account, Cluster, Installation, Scratch, run};
use crate::program::{Call, Outcome};
use crate::repository::Repository;

/// Names that shells, connection strings and file systems might misread.
pub const ODD: [&str; 6] = ["a ='b'", "-lead", "Grüße \"x\"", "back\\slash", "a/../b", "percent%20 $HOME"];

pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A call of an operator who reaches this server.
pub fn at_server(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Call {
    Call::new(words.iter().copied())
        .envs(repository.env())
        .env("PGARK_CLUSTER__CONNINFO", cluster.endpoint().conninfo())
        .envs(cluster.installation().with_dump_programs().env_of_programs())
}

pub fn call(repository: &Repository, cluster: &Cluster, words: &[&str]) -> Outcome {
    as_servers_user(&at_server(repository, cluster, words))
}

/// Takes a dump, and returns its name.
pub fn take_dump(repository: &Repository, cluster: &Cluster, words: &[&str]) -> String {
    let words: Vec<&str> = ["dump", "--json"].into_iter().chain(words.iter().copied()).collect();
    let outcome = call(repository, cluster, &words).quiet_success();
    let report: Value = serde_json::from_str(&outcome.stdout).expect("a report in JSON");
    report["dump"]["id"].as_str().expect("the dump has a name").to_owned()
}

pub fn sql(cluster: &Cluster, database: &str, statements: &str) -> Vec<Vec<String>> {
    let mut client = cluster.endpoint().connect_to(database).unwrap();
    client.sql(statements).unwrap_or_else(|error| panic!("{database}: {error}"))
}

pub fn server(installation: &'static Installation) -> Cluster {
    Cluster::builder().installation(installation).conf("archive_mode = off").start()
}

/// Much of what a database can hold.
fn furnish(cluster: &Cluster, database: &str) {
    let statements = "
        create schema s;
        create type s.mood as enum ('sad', 'ok');
        create domain s.positive as int check (value > 0);
        create sequence s.numbers start 42 increment 7;
        select nextval('s.numbers'), nextval('s.numbers');
        create table s.parent (id int primary key, at timestamptz not null default now(), mood s.mood);
        insert into s.parent select i, '2026-11-22 14:05:00+01', (array['sad','ok'])[1 + i % 2]::s.mood
            from generate_series(1, 1000) as i;
        create table s.child (id bigint generated always as identity primary key, parent int references s.parent,
            text text collate \"C\", doubled int generated always as (parent * 2) stored, amount s.positive);
        insert into s.child (parent, text, amount) select i, repeat(md5(i::text), 20) || E'\\n\\t\\\\' || chr(228), i
            from generate_series(1, 1000) as i;
        create index on s.child (lower(text)) where parent > 10;
        create table s.measured (day date not null, value float8) partition by range (day);
        create table s.measured_2026 partition of s.measured for values from ('2026-01-01') to ('2027-01-01');
        create table s.measured_else partition of s.measured default;
        insert into s.measured select date '2026-06-01' + i, random() from generate_series(1, 500) as i;
        create view s.both_of_them as select p.id, c.text from s.parent p join s.child c on c.parent = p.id;
        create materialized view s.counted as select mood, count(*) from s.parent group by mood;
        create function s.add(a int, b int) returns int language sql immutable as 'select a + b';
        create function s.noted() returns trigger language plpgsql as $$begin new.mood := 'ok'; return new; end$$;
        create trigger noted before update on s.parent for each row execute function s.noted();
        alter table s.parent enable row level security;
        create policy visible on s.parent for select to reader using (id < 10);
        grant usage on schema s to reader;
        grant select on s.parent to reader with grant option;
        grant select (text) on s.child to writer;
        alter table s.child owner to writer;
        comment on table s.parent is 'a comment with ''quotes''';
        alter default privileges in schema s grant select on tables to reader;
        create statistics s.together on id, mood from s.parent;
        select lo_from_bytea(70001, repeat('large', 100000)::bytea);
        select lo_from_bytea(70002, ''::bytea);
        grant select on large object 70001 to reader";
    sql(cluster, database, statements);
    let (name, quoted) = (identifier(database), database.replace('\'', "''"));
    sql(
        cluster,
        database,
        &format!("alter database {name} set work_mem = '5MB'; comment on database {name} is '{quoted}'"),
    );
}

/// What a database holds, as far as it can be counted.
fn counted(cluster: &Cluster, database: &str) -> BTreeMap<String, String> {
    let tables = sql(
        cluster,
        database,
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.relkind in ('r', 'm', 'S', 'p') and n.nspname not in ('pg_catalog', 'information_schema')",
    );
    let mut all = BTreeMap::new();
    for table in tables.into_iter().map(|row| row[0].clone()) {
        let kind = sql(cluster, database, &format!("select relkind from pg_class where oid = '{table}'::regclass"));
        // A sequence's log count is its own.
        let query = match kind[0][0].as_str() {
            "S" => format!("select last_value, is_called from {table}"),
            _ => format!("select count(*), md5(string_agg(t::text, ',' order by t::text)) from {table} as t"),
        };
        let rows = sql(cluster, database, &query);
        all.insert(table, rows[0].join(" "));
    }
    let large =
        "select loid, count(*), md5(string_agg(data, '' order by pageno)) from pg_largeobject group by loid order by 1";
    all.insert("large objects".into(), format!("{:?}", sql(cluster, database, large)));
    let owners = "select oid, lomowner::regrole, lomacl from pg_largeobject_metadata order by 1";
    all.insert("their owners".into(), format!("{:?}", sql(cluster, database, owners)));
    all
}

/// `pg_dump --schema-only`, without what is made anew each time.
fn schema(cluster: &Cluster, database: &str) -> String {
    let program = cluster.installation().with_dump_programs();
    let quoted = database.replace('\\', "\\\\").replace('\'', "\\'");
    let place = format!("{} dbname='{quoted}'", cluster.endpoint().conninfo().replace("dbname=postgres", ""));
    let text = run(program.command("pg_dump").args(["--schema-only", "--create", "--dbname"]).arg(place)).unwrap();
    text.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

fn globals(cluster: &Cluster) -> String {
    let program = cluster.installation().with_dump_programs();
    let text =
        run(program.command("pg_dumpall").args(["--globals-only", "--dbname"]).arg(cluster.endpoint().conninfo()));
    text.unwrap().lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// A server with roles, a tablespace at `fast` and databases with odd names, each full of things.
fn furnished(installation: &'static Installation, fast: &Path) -> Cluster {
    let cluster = server(installation);
    cluster.execute("create role reader nologin; create role writer login password 's3cret' connection limit 5");
    cluster.execute("create role \"odd 'one\" in role reader; grant writer to reader with admin option");
    cluster.execute("alter role writer set search_path = s, public");
    cluster.execute(&format!("create tablespace fast location '{}'", fast.display()));
    for name in ["shop"].iter().chain(&ODD) {
        cluster.execute(&format!("create database {} encoding 'UTF8' template template0", identifier(name)));
    }
    cluster.execute("alter database shop owner to writer; grant connect on database shop to reader");
    furnish(&cluster, "shop");
    furnish(&cluster, ODD[0]);
    sql(&cluster, "shop", "create table s.beside tablespace fast as select 1 as one");
    for name in ODD {
        sql(&cluster, name, &format!("create table t as select '{}'::text as name", name.replace('\'', "''")));
    }
    let extensions =
        sql(&cluster, "shop", "select name from pg_available_extensions where name in ('hstore', 'pg_trgm')");
    for extension in extensions {
        sql(&cluster, "shop", &format!("create extension {} schema s", extension[0]));
    }
    cluster
}

fn directory(place: &Scratch, name: &str) -> std::path::PathBuf {
    let path = place.path().join(name);
    std::fs::create_dir(&path).unwrap();
    Account::of_servers().own(&path);
    path
}

/// A whole server goes into the repository and comes back as another one: roles with passwords, tablespaces, all databases.
#[test]
fn a_dump_restores_to_an_equal_server() {
    for installation in Installation::all_wanted() {
        // What another version's `pg_dump` writes for `create database` a server need not know.
        if installation.with_dump_programs().major != installation.major {
            eprintln!("{}: left out, it has no pg_dump of its own here", installation.version);
            continue;
        }
        for (repository, words) in [
            (Repository::local(), &["--all", "--globals"][..]),
            (Repository::s3(), &["--format", "directory", "--jobs", "2"][..]),
        ] {
            let place = Scratch::new("fast");
            let fast = directory(&place, "fast");
            let original = furnished(installation, &fast);
            let id = take_dump(&repository, &original, words);
            let databases: Vec<&str> = ["shop"].into_iter().chain(ODD).collect();
            let were: Vec<_> =
                databases.iter().map(|name| (counted(&original, name), schema(&original, name))).collect();
            let had = globals(&original);
            drop(original);
            std::fs::remove_dir_all(&fast).unwrap();
            directory(&place, "fast");

            let copy = server(installation);
            call(&repository, &copy, &["dump-restore", &id, "--globals", "--all", "--create"]).quiet_success();
            assert_eq!(globals(&copy), had);
            for (name, were) in databases.iter().zip(&were) {
                let (is, was) = (counted(&copy, name), &were.0);
                assert_eq!(&is, was, "{name} of {}", installation.version);
                assert_eq!(schema(&copy, name), were.1, "{name} of {}", installation.version);
            }
            eprintln!("{}: {} databases are equal", installation.version, databases.len());
        }
    }
}

/// One database, into itself, beside itself, in parts and by hand.
#[test]
fn one_database_goes_where_it_should() {
    let place = Scratch::new("one");
    let fast = directory(&place, "fast");
    let repository = Repository::local();
    let cluster = furnished(Installation::preferred(), &fast);
    let id = take_dump(&repository, &cluster, &["--database", ODD[0], "--label", "odd"]);
    let was = counted(&cluster, ODD[0]);
    let restore = |words: &[&str]| {
        let words: Vec<&str> = ["dump-restore"].into_iter().chain(words.iter().copied()).collect();
        call(&repository, &cluster, &words)
    };

    // What is there is not written over unless that is asked for, and then nothing stays of what came after.
    restore(&[]).code(17).says("already exists").says("nothing of that database was changed");
    sql(&cluster, ODD[0], "delete from s.child");
    restore(&["--clean"]).quiet_success();
    assert_eq!(counted(&cluster, ODD[0]), was);
    cluster.execute("create database beside template template0");
    restore(&["latest", "--database", ODD[0], "--into", "beside", "--jobs", "3"]).quiet_success();
    assert_eq!(counted(&cluster, "beside"), was);
    sql(&cluster, ODD[0], "drop table s.measured; create table s.later ()");
    restore(&[&id, "--create", "--clean"]).quiet_success();
    assert_eq!(counted(&cluster, ODD[0]), was);
    sql(&cluster, ODD[0], "drop table t");
    restore(&[&id, "--table", "t"]).quiet_success();
    assert_eq!(counted(&cluster, ODD[0]), was);
    // A table's foreign key is one of the rest.
    cluster.execute("create database bare template template0");
    restore(&["--into", "bare", "--", "--section=pre-data", "--no-privileges"]).quiet_success();
    assert_eq!(sql(&cluster, "bare", "select count(*) from s.parent")[0][0], "0");

    // A file is what pg_restore reads; one that is there stays.
    let file = place.path().join("a.dump");
    Account::of_servers().own(place.path());
    restore(&["--to", file.to_str().unwrap()]).quiet_success();
    let list = run(cluster.installation().with_dump_programs().command("pg_restore").arg("--list").arg(&file)).unwrap();
    assert!(list.contains("TABLE DATA s child"), "{list}");
    restore(&["--to", file.to_str().unwrap()]).code(2).says("is there already");

    // By hand: the parts one after the other are the file.
    let parts: Vec<u8> = (repository.keys().iter())
        .filter(|key| key.starts_with(&format!("main/dump/{id}/000001/")))
        .flat_map(|key| repository.object(key).unwrap())
        .collect();
    let packed = place.path().join("parts");
    std::fs::write(&packed, parts).unwrap();
    let unpacked = Command::new("zstd").arg("-dc").arg(&packed).output().unwrap();
    assert!(unpacked.stdout == std::fs::read(&file).unwrap(), "the same file");

    restore(&["--database", "nowhere"]).code(2).says("has no database `nowhere`");
    restore(&["--globals"]).code(2).says("has no globals");
    take_dump(&repository, &cluster, &[]);
    restore(&[]).code(2).says("say which are meant");
    // Roles that are there are no failure; what else goes wrong is one.
    restore(&["--globals"]).quiet_success();
    cluster.execute("drop table if exists nothing");
    sql(&cluster, "shop", "drop table s.beside");
    cluster.execute("drop tablespace fast");
    std::fs::remove_dir_all(&fast).unwrap();
    restore(&["--globals"]).code(17).says("58P01");
}

/// A server that refuses passwords on command lines and in the environment of others: nobody sees one.
#[test]
fn a_dump_with_a_password_shows_it_to_nobody() {
    let repository = Repository::local();
    let cluster = server(Installation::preferred());
    cluster.execute("create role dumper login superuser password 's3cret-word'");
    cluster.execute("create table t as select generate_series(1, 10) as i");
    std::fs::write(cluster.data_dir().join("pg_hba.conf"), "local all dumper scram-sha-256\nlocal all all trust\n")
        .unwrap();
    cluster.reload();
    let conninfo = cluster.endpoint().conninfo().replace("user=postgres", "user=dumper password='s3cret-word'");
    // A table that is locked keeps pg_dump waiting where it can be looked at.
    let mut session = cluster.connect();
    session.sql("begin; lock table t in access exclusive mode").unwrap();
    let call = at_server(&repository, &cluster, &["dump", "--database", "postgres"]);
    let call = call.env("PGARK_CLUSTER__CONNINFO", conninfo);
    let mut command = call.command();
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = Account::of_servers().run(&mut command).spawn().unwrap();
    cluster.wait_until("pg_dump waits for the table", crate::dump_faults::A_MINUTE, || {
        cluster.value("select count(*) from pg_locks where not granted") == "1"
    });
    let programs = crate::dump_faults::descendants(child.id());
    assert!(programs.iter().any(|(_, line)| line.contains("pg_dump")), "{programs:?}");
    assert!(programs.iter().all(|(_, line)| !line.contains("s3cret")), "{programs:?}");
    for (pid, _) in programs.iter().filter(|(pid, _)| *pid != child.id()) {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).replace('\0', "\n");
        assert!(!environment.contains("PGPASSWORD"), "{environment}");
    }
    session.sql("rollback").unwrap();
    let outcome = crate::program::finish(child).quiet_success();
    assert!(!outcome.stdout.contains("s3cret"));
}
