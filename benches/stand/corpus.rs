//! Segments to archive: of a real server, in the `pg_wal` of what is left of its data directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the server does.
#[derive(Clone, Copy)]
pub enum Load {
    /// pgbench at a scale, so many transactions by each of four clients, so often: WAL that zstd makes some twelve times smaller.
    Pgbench { scale: u32, transactions: u32, times: u32 },
    /// Rows of random hexadecimal digits, so many thousand: WAL that hardly gets smaller than half.
    Random(u32),
}

impl Load {
    fn scale(self) -> u32 {
        match self {
            Load::Pgbench { scale, .. } => scale,
            Load::Random(_) => 1,
        }
    }

    fn script(self) -> String {
        match self {
            // After a checkpoint pages go to the WAL whole.
            Load::Pgbench { transactions, times, .. } => format!(
                "for run in $(seq {times}); do psql -X -q -c checkpoint; pgbench -c 4 -j 2 -t {transactions} -n; done"
            ),
            Load::Random(thousands) => format!(
                "psql -X -q -c \"create table hard as select md5(random()::text) || md5(random()::text) as digits \
                 from generate_series(1, {thousands} * 1000)\""
            ),
        }
    }
}

/// Segments of a pgbench run on a throw-away server.
pub fn corpus(place: &Path, load: Load) -> Vec<PathBuf> {
    let bin = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL")
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .max()
        .unwrap();
    let out = place.join("pg_wal");
    fs::create_dir(&out).unwrap();
    let script = r#"
        set -e
        cd "$1"; mkdir work; [ "$(id -u)" = 0 ] && chown postgres work && chmod 755 . && run="runuser -u postgres --"
        $run env LOAD="$LOAD" SCALE="$SCALE" PATH="$2:/usr/bin:/bin" bash -ec '
            cd work; initdb -D data -U postgres -A trust --no-sync >/dev/null
            printf "%b\n" "listen_addresses = \047\047" "unix_socket_directories = \047$PWD\047" \
                "wal_keep_size = 4GB" "max_wal_size = 4GB" "fsync = off" >> data/postgresql.conf
            pg_ctl -D data -l log -w -s start
            export PGHOST=$PWD PGUSER=postgres PGDATABASE=postgres
            pgbench -i -s $SCALE -q 2>/dev/null
            from=$(psql -X -At -c "select pg_walfile_name(pg_current_wal_lsn())")
            eval "$LOAD" >/dev/null 2>&1
            psql -X -q -c "select pg_switch_wal()" >/dev/null
            pg_ctl -D data -s stop -m fast
            ls data/pg_wal | grep -E "^[0-9A-F]{24}$" | awk -v from=$from "\$0 > from" | head -n -1 > names'
        while read name; do cp "work/data/pg_wal/$name" pg_wal/; done < work/names
        cp -r work/data/global work/data/PG_VERSION .
        rm -rf work
    "#;
    let status = Command::new("bash")
        .args(["-c", script, "corpus"])
        .arg(place)
        .arg(&bin)
        .env("LOAD", load.script())
        .env("SCALE", load.scale().to_string())
        .status();
    let status = status.unwrap();
    assert!(status.success(), "cannot make the corpus");
    let mut segments: Vec<PathBuf> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    assert!(segments.len() >= 5, "only {} segments", segments.len());
    segments
}
