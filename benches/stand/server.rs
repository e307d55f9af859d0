//! The S3 server of the tests as a process of its own, which says what was asked of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::double;

/// The server: says where it is, then answers `requests` with what was asked of it since the last time, and obeys `latency MS`.
pub fn serve() {
    let double = double::S3Double::start();
    println!("{} {} {} {}", double.endpoint(), double.bucket(), double.access_key(), double.secret_key());
    for line in std::io::stdin().lines() {
        if let Some(millis) = line.unwrap().strip_prefix("latency ") {
            double.latency(Duration::from_millis(millis.parse().unwrap()));
            continue;
        }
        let operations: Vec<&str> = double.requests().iter().map(|logged| logged.operation).collect();
        println!("{}", operations.join(" "));
        double.clear_requests();
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
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let parts: Vec<&str> = line.split_whitespace().collect();
        let env = [
            ("PGARK_REPO__URL", format!("s3://{}/pg", parts[1])),
            ("PGARK_REPO__ENDPOINT", parts[0].to_owned()),
            ("AWS_ACCESS_KEY_ID", parts[2].to_owned()),
            ("AWS_SECRET_ACCESS_KEY", parts[3].to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("PGARK_CONFIG", "/dev/null".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Server { process, orders, answers, env }
    }

    /// Each answer comes so much later from now on.
    pub fn latency(&mut self, millis: u64) {
        writeln!(self.orders, "latency {millis}").unwrap();
    }

    /// CPU time of the process up to now, in ms.
    pub fn cpu_ms(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // In hundredths of a second: `utime` and `stime` in proc(5).
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() * 10.0).sum()
    }

    pub fn requests(&mut self) -> String {
        writeln!(self.orders, "requests").unwrap();
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
