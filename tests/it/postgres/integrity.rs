//! What PostgreSQL's own checkers say of a restored cluster, and what its log has that nobody can explain.

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
/// stays stopped. What a major does not ship is left out, and said so.
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
    match cluster.installation().program("pg_checksums") {
        Some(program) => run(program.command().arg("--check").arg("-D").arg(cluster.data_dir())).map(drop),
        None => {
            eprintln!("PostgreSQL {version}: page checksums not checked, pg_checksums is not shipped");
            Ok(())
        }
    }
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
