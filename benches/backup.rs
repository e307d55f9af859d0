//! What a backup and a restore take, each beside its floor in the same run: `make bench`.
//!
//! Wall time, as a ratio of what `tar` and `zstd` need for the same data directory with the same level and two threads; and
//! peak memory of whole processes, also with a very large number of files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::panic)]

#[path = "stand/backup_peers.rs"]
mod backup_peers;
#[path = "stand/found.rs"]
mod found;
// `ahead` uses the rest of it.
#[allow(dead_code)]
#[path = "stand/judge.rs"]
mod judge;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use judge::Verdicts;
use nix::sys::resource::{UsageWho, getrusage};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--measure") => measure(&words[1..]),
        _ => bench(),
    }
}

/// Runs a program as the only child of this process, so that the children's usage is its own.
fn measure(words: &[String]) {
    let begun = Instant::now();
    let status = Command::new(&words[0]).args(&words[1..]).stdout(Stdio::null()).status().expect("run the program");
    let wall = begun.elapsed();
    assert!(status.success(), "{words:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    println!(
        "{} {} {}",
        wall.as_secs_f64(),
        seconds(usage.user_time()) + seconds(usage.system_time()),
        usage.max_rss()
    );
}

#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    peak_mb: f64,
}

/// A running cluster that archives with pgark, in memory where there is room.
struct Place {
    root: PathBuf,
    bin: PathBuf,
    pgark: PathBuf,
}

/// Rounds of each measurement; the quickest counts, for both sides.
const ROUNDS: usize = 3;
/// A pgbench database of 2 GB and a little.
const SCALE: u32 = 140;
const MANY_FILES: u32 = 200_000;
const MANY_SEGMENTS: u64 = 100_000;
const STATUS_SECONDS: f64 = 5.0;

const BACKUP: &str = "$PGARK basebackup --quiet";
const RESTORE: &str = "rm -rf out && $PGARK restore --to $PWD/out --target-immediate --quiet";

fn bench() {
    let place = Place::make();
    let mut met = true;
    let size = place.shell("du -sm data | cut -f1").trim().to_owned();
    println!("data directory: {size} MB of a pgbench database, level 3, 2 jobs; the quickest of {ROUNDS} rounds each");
    println!("{:<34}{:>9}{:>9}{:>9}{:>9}   limit", "", "wall s", "CPU s", "MB", "x floor");
    let floor = place.best(
        "tar | zstd -T2",
        "tar -c -C data --exclude=pg_wal . | zstd -3 -T2 -q -f -o floor.tar.zst",
        None,
        &mut met,
    );
    place.best("pgark basebackup", BACKUP, Some((floor, 1.1, 120.0)), &mut met);
    let floor = place.best(
        "zstd -d | tar x",
        "rm -rf out && mkdir out && zstd -dc floor.tar.zst | tar -x -C out",
        None,
        &mut met,
    );
    place.best("pgark restore", RESTORE, Some((floor, 1.2, 120.0)), &mut met);
    let mut verdicts = Verdicts::default();
    place.beside_peers(&mut verdicts);
    let none = Cost { wall: f64::INFINITY, cpu: 0.0, peak_mb: 0.0 };
    place.shell("head -c 1G /dev/urandom > data/random");
    println!("\nwith a file of 1 GiB more that cannot be compressed:");
    place.best("pgark basebackup", BACKUP, Some((none, 1.0, 120.0)), &mut met);
    place.shell("rm data/random");
    place.shell(&format!(
        "mkdir data/many && cd data/many && for d in $(seq 200); do mkdir $d; (cd $d; seq {} | split -l 1 -a 4 - f); done",
        MANY_FILES / 200
    ));
    println!("\nwith {MANY_FILES} files more:");
    place.best("pgark basebackup", BACKUP, Some((none, 1.0, 250.0)), &mut met);
    place.best("pgark restore", RESTORE, Some((none, 1.0, 250.0)), &mut met);
    println!(
        "part objects of that backup: {}",
        place.shell("ls repo/main/1/backup | tail -1 | xargs -I{} ls repo/main/1/backup/{}/part | wc -l").trim()
    );
    place.archive_more(MANY_SEGMENTS);
    println!("\nwith {MANY_SEGMENTS} segments in the archive:");
    place.within("pgark status", "$PGARK status --no-server || [ $? = 1 ]", STATUS_SECONDS, &mut met);
    verdicts.print();
    println!("\n{}", if met { "all limits are met" } else { "NOT all limits are met" });
    assert!(met);
}

impl Place {
    fn make() -> Self {
        let roomy = Path::new("/dev/shm").is_dir();
        let root = if roomy { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let root = root.join(format!("pgark-bench-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let bins = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed: `make prepare`");
        let bin = bins.flatten().map(|entry| entry.path().join("bin")).max().unwrap();
        let release = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/release/pgark");
        let pgark = root.join("pgark");
        fs::copy(&release, &pgark).expect("`make bench` builds the release first");
        let owner = "chmod 755 . && if [ $(id -u) = 0 ]; then chown postgres .; fi";
        assert!(Command::new("bash").args(["-ec", owner]).current_dir(&root).status().unwrap().success());
        let place = Place { root, bin, pgark };
        place.shell(&format!(
            r#"initdb -D data -U postgres -A trust -k --no-sync >/dev/null
            mkdir -p repo
            cat >> data/postgresql.conf <<END
listen_addresses = ''
unix_socket_directories = '$PWD'
fsync = off
max_wal_size = 8GB
shared_buffers = 256MB
autovacuum = off
archive_mode = on
archive_command = '$PGARK wal-push %p %f'
END
            pg_ctl -D data -l log -w -s start
            pgbench -i -s {SCALE} -q 2>/dev/null
            psql -X -q -c checkpoint -c 'select pg_switch_wal()' >/dev/null
            while ls data/pg_wal/archive_status | grep -q ready; do sleep 0.2; done"#
        ));
        place
    }

    /// A script of the servers' user in this place.
    fn script(&self, script: &str) -> Vec<String> {
        let path = format!("PATH={}:/usr/bin:/bin", self.bin.display());
        let repository = format!("PGARK_REPO__URL=file://{}/repo", self.root.display());
        let pgdata = format!("PGARK_CLUSTER__PGDATA={}/data", self.root.display());
        let (pgark, host) = (format!("PGARK={}", self.pgark.display()), format!("PGHOST={}", self.root.display()));
        let mut words: Vec<&str> = Vec::new();
        if nix::unistd::Uid::effective().is_root() {
            words.extend(["runuser", "-u", "postgres", "--"]);
        }
        words.extend(["env", "-i", &path, &repository, &pgdata, &pgark, &host]);
        words.extend(["PGUSER=postgres", "PGDATABASE=postgres", "PGARK_CONFIG=/dev/null", "LANG=C.UTF-8"]);
        words.extend(["bash", "-euo", "pipefail", "-c", script]);
        words.into_iter().map(str::to_owned).collect()
    }

    fn shell(&self, script: &str) -> String {
        let words = self.script(script);
        let output = Command::new(&words[0]).args(&words[1..]).current_dir(&self.root).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn once(&self, script: &str) -> Cost {
        self.try_once(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    fn try_once(&self, script: &str) -> Result<Cost, String> {
        let myself = std::env::current_exe().unwrap();
        let mut command = Command::new(myself);
        let output = command.arg("--measure").args(self.script(script)).current_dir(&self.root).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Ok(Cost { wall: numbers[0], cpu: numbers[1], peak_mb: numbers[2] / 1024.0 })
    }

    /// The same backup and restore by other archivers, in turns. One that cannot is left out.
    fn beside_peers(&self, verdicts: &mut Verdicts) {
        let mut peers = backup_peers::all(&self.root);
        peers.retain(|peer| {
            let done = self.try_once(&peer.prepare).and_then(|_| self.try_once(&peer.backup));
            let done = done.and_then(|_| self.try_once(&peer.restore));
            done.inspect_err(|error| println!("{} is left out: {error}", peer.title)).is_ok()
        });
        if peers.is_empty() {
            return;
        }
        println!("\nbeside others, in turns, to a local directory:");
        for (what, own, script) in [
            ("backup", BACKUP, (|peer| &peer.backup) as fn(&backup_peers::BackupPeer) -> &String),
            ("restore", RESTORE, |peer| &peer.restore),
        ] {
            let scripts = std::iter::once(own).chain(peers.iter().map(|peer| script(peer).as_str()));
            let scripts: Vec<&str> = scripts.collect();
            let mut quickest = vec![Cost { wall: f64::INFINITY, cpu: 0.0, peak_mb: 0.0 }; scripts.len()];
            for _ in 0..ROUNDS {
                for (script, quickest) in scripts.iter().zip(&mut quickest) {
                    let cost = self.once(script);
                    let peak_mb = quickest.peak_mb.max(cost.peak_mb);
                    *quickest = Cost { peak_mb, ..if cost.wall < quickest.wall { cost } else { *quickest } };
                }
            }
            let titles = std::iter::once("pgark").chain(peers.iter().map(|peer| peer.title.as_str()));
            for (title, cost) in titles.zip(&quickest) {
                let name = format!("{what}, {title}");
                println!("{name:<34}{:>9.2}{:>9.2}{:>9.1}", cost.wall, cost.cpu, cost.peak_mb);
            }
            let best = quickest[1..].iter().map(|cost| cost.wall).fold(f64::INFINITY, f64::min);
            verdicts.at_most(what, quickest[0].wall / best, 1.0, "x peer");
        }
    }

    /// Segments behind those that are there, as far as a listing tells.
    fn archive_more(&self, count: u64) {
        let wal = self.root.join("repo/main/1/wal/00000001");
        let names = |path: &Path| fs::read_dir(path).unwrap().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
        let last = names(&wal).into_iter().filter(|path| path.is_dir()).max().unwrap();
        let segment = |path: PathBuf| path.file_name()?.to_str()?.strip_suffix(".zst")?.get(8..24).map(str::to_owned);
        let newest = names(&last).into_iter().filter_map(segment).max().unwrap();
        let part = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let begin = part(&newest[..8]) * 256 + part(&newest[8..]) + 1;
        for number in begin..begin + count {
            let (log, segment) = (number / 256, number % 256);
            let directory = wal.join(format!("{log:08X}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!("00000001{log:08X}{segment:08X}.zst")), b"x").unwrap();
        }
    }

    /// The same against a limit in seconds.
    fn within(&self, name: &str, script: &str, seconds: f64, met: &mut bool) {
        let best = (0..ROUNDS).map(|_| self.once(script)).min_by(|a, b| a.wall.total_cmp(&b.wall)).unwrap();
        let good = best.wall <= seconds;
        *met &= good;
        let mark = if good { "" } else { "  <-- NOT MET" };
        println!("{name:<34}{:>9.2}{:>9.2}{:>9.1}{:>9}   {seconds} s{mark}", best.wall, best.cpu, best.peak_mb, "");
    }

    /// Runs it some times, prints a line, and judges it by its floor, ratio and memory limit.
    fn best(&self, name: &str, script: &str, limit: Option<(Cost, f64, f64)>, met: &mut bool) -> Cost {
        let costs: Vec<Cost> = (0..ROUNDS).map(|_| self.once(script)).collect();
        let best = costs.iter().copied().min_by(|a, b| a.wall.total_cmp(&b.wall)).unwrap();
        let peak_mb = costs.iter().map(|cost| cost.peak_mb).fold(0.0, f64::max);
        let mut line = format!("{name:<34}{:>9.2}{:>9.2}{peak_mb:>9.1}", best.wall, best.cpu);
        match limit {
            Some((floor, ratio, memory)) => {
                let times = best.wall / floor.wall;
                let shown = if floor.wall.is_finite() { format!("{times:>9.2}") } else { " ".repeat(9) };
                let good = times <= ratio && peak_mb <= memory;
                *met &= good;
                let mark = if good { "" } else { "  <-- NOT MET" };
                line.push_str(&format!("{shown}   {ratio} x, {memory} MB{mark}"));
            }
            None => line.push_str("              floor"),
        }
        println!("{line}");
        Cost { peak_mb, ..best }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let stop = self.script("pg_ctl -D data -s stop -m immediate");
        Command::new(&stop[0]).args(&stop[1..]).current_dir(&self.root).status().ok();
        fs::remove_dir_all(&self.root).ok();
    }
}
