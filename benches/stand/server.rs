//! The S3 server of the tests as a process of its own, which says what was asked of it and what it holds.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::double;

/// The server: says where it is, then obeys `latency MS` and `forget PREFIX`, and answers `requests` with what was asked of it since the
/// last time and `stored PREFIX` with a number of bytes. With a word it speaks TLS, and writes its authority into that file.
pub fn serve(words: &[String]) {
    let double = match words.first() {
        Some(_) => double::S3Double::builder().tls().start(),
        None => double::S3Double::start(),
    };
    if let (Some(path), Some(pem)) = (words.first(), double.ca_pem()) {
        std::fs::write(path, pem).unwrap();
    }
    println!("{} {} {} {}", double.endpoint(), double.bucket(), double.access_key(), double.secret_key());
    let below = |prefix: &str| double.keys().into_iter().filter(move |key| key.starts_with(prefix)).collect::<Vec<_>>();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("latency", millis) => double.latency(Duration::from_millis(millis.parse().unwrap())),
            ("forget", prefix) => below(prefix).iter().for_each(|key| assert!(double.remove(key))),
            ("stored", prefix) => {
                let sizes = below(prefix).into_iter().filter_map(|key| Some(double.stored(&key)?.data.len()));
                println!("{}", sizes.sum::<usize>());
            }
            _ => {
                let operations: Vec<&str> = double.requests().iter().map(|logged| logged.operation).collect();
                println!("{}", operations.join(" "));
                double.clear_requests();
            }
        }
    }
}

/// The server, seen from outside.
pub struct Server {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub env: Vec<(String, String)>,
}

impl Server {
    pub fn start() -> Self {
        Self::over(None)
    }

    /// With TLS; the authority to trust is written there.
    pub fn with_tls(authority: &Path) -> Self {
        Self::over(Some(authority.to_owned()))
    }

    fn over(authority: Option<PathBuf>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .args(&authority)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let parts: Vec<&str> = line.split_whitespace().collect();
        let mut env = vec![
            ("PGARK_REPO__URL", format!("s3://{}/pg", parts[1])),
            ("PGARK_REPO__ENDPOINT", parts[0].to_owned()),
            ("AWS_ACCESS_KEY_ID", parts[2].to_owned()),
            ("AWS_SECRET_ACCESS_KEY", parts[3].to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("PGARK_CONFIG", "/dev/null".to_owned()),
        ];
        env.extend(authority.map(|path| ("PGARK_REPO__CA_FILE", path.display().to_string())));
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Server { process, orders, answers, env }
    }

    /// One of the variables that pgark gets.
    pub fn var(&self, name: &str) -> &str {
        &self.env.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub fn endpoint(&self) -> &str {
        self.var("PGARK_REPO__ENDPOINT")
    }

    pub fn bucket(&self) -> &str {
        self.var("PGARK_REPO__URL").split('/').nth(2).unwrap()
    }

    /// Each answer comes so much later from now on.
    pub fn latency(&mut self, millis: u64) {
        writeln!(self.orders, "latency {millis}").unwrap();
        // The next answer comes when this is obeyed.
        self.requests();
    }

    /// CPU time of the process up to now, in ms.
    pub fn cpu_ms(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // In hundredths of a second: `utime` and `stime` in proc(5).
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum()
    }

    pub fn requests(&mut self) -> String {
        self.ask("requests")
    }

    /// Bytes below a prefix.
    pub fn stored(&mut self, prefix: &str) -> f64 {
        self.ask(&format!("stored {prefix}")).parse().unwrap()
    }

    /// Deletes what is below a prefix.
    pub fn forget(&mut self, prefix: &str) {
        writeln!(self.orders, "forget {prefix}").unwrap();
        self.requests();
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
