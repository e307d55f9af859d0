//! What PostgreSQL's own checkers say of a restored cluster, and what its log has that nobody can explain.

use std::{fs, os::unix::fs::symlink};

use super::{
    cluster::{Cluster, StopMode},
    installation::run,
};

/// FATAL lines that starting, stopping and promoting bring about.
const ORDINARY: [&str; 5] = [
    "terminating connection due to administrator command",
    "terminating walreceiver process due to administrator command",
    "the database system is starting up",
    "the database system is not yet accepting connections",
    "the database system is shutting down",
];

/// Checks all indexes and tables of a running primary with amcheck, then stops it and checks the page checksums. It
/// stays stopped. A build without amcheck is said aloud; of page checksums another major's program judges.
pub fn integrity(cluster: &Cluster) -> Result<(), String> {
    let version = &cluster.installation().version;
    let shipped = cluster.try_sql("SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'")?;
    if shipped.is_empty() {
        eprintln!("PostgreSQL {version}: tables and indexes not checked, amcheck is not shipped");
    } else {
        cluster.try_sql("CREATE EXTENSION IF NOT EXISTS amcheck")?;
        match cluster.installation().program("pg_amcheck") {
            Some(program) => {
                let mut command = program.command();
                command.arg("-h").arg(&cluster.endpoint().socket_directory);
                command.args(["-p", &cluster.endpoint().port.to_string(), "-U", "postgres"]);
                run(command.args(["--heapallindexed", "--parent-check", "postgres"]))?;
            }
            None => amcheck_by_sql(cluster)?,
        }
    }
    cluster.stop(StopMode::Fast);
    page_checksums(cluster)
}

/// `CATALOG_VERSION_NO` of the majors whose `pg_checksums` may judge another's files.
const CATALOGS: [(u32, &str); 3] = [(14, "202107181"), (15, "202209061"), (16, "202307071")];

fn page_checksums(cluster: &Cluster) -> Result<(), String> {
    let program = cluster.installation().checksums_program();
    let mut links = Vec::new();
    if let Some((major, catalog)) = CATALOGS.iter().find(|(major, _)| *major == program.major())
        && *major != cluster.installation().major
    {
        // It looks for its own directory in each tablespace.
        let tablespaces = fs::read_dir(cluster.data_dir().join("pg_tblspc")).map_err(|error| error.to_string())?;
        for place in tablespaces.flatten().map(|entry| entry.path()) {
            let own = fs::read_dir(&place).into_iter().flatten().flatten().next().map(|entry| entry.file_name());
            let link = place.join(format!("PG_{major}_{catalog}"));
            symlink(own.ok_or("an empty tablespace")?, &link).map_err(|error| error.to_string())?;
            links.push(link);
        }
    }
    let outcome = run(program.command().arg("--check").arg("-D").arg(cluster.data_dir())).map(drop);
    links.iter().for_each(|link| fs::remove_file(link).expect("remove the link"));
    outcome
}

fn amcheck_by_sql(cluster: &Cluster) -> Result<(), String> {
    cluster.try_sql(
        "SELECT bt_index_parent_check(c.oid::regclass, true) \
         FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid \
         WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND i.indisready AND i.indisvalid",
    )?;
    let damage = cluster.try_sql(
        "SELECT c.oid::regclass, v.blkno, v.offnum, v.msg \
         FROM pg_class c JOIN pg_am a ON a.oid = c.relam, LATERAL verify_heapam(c.oid::regclass) v \
         WHERE a.amname = 'heap' AND c.relkind IN ('r', 'm', 't') AND c.relpersistence = 'p'",
    )?;
    if damage.is_empty() { Ok(()) } else { Err(format!("damaged tuples: {damage:?}")) }
}

/// The FATAL and PANIC lines of a log that contain none of the allowed texts and that no ordinary start, stop or
/// promotion explains.
pub fn unexplained(log: &str, allowed: &[&str]) -> Vec<String> {
    log.lines()
        .filter(|line| line.contains("FATAL:") || line.contains("PANIC:"))
        .filter(|line| !ORDINARY.iter().chain(allowed).any(|text| line.contains(text)))
        .map(str::to_owned)
        .collect()
}
