//! How many instructions a call takes, as valgrind counts them: the same on a busy machine as on a quiet one, so that a change shows.

use std::path::Path;
use std::process::{Command, Stdio};

/// A line for the call, if valgrind is there. It has a simpler CPU than ours: SHA-256 is computed without its own instructions.
pub fn print(what: &str, words: &[String], env: &[(String, String)], directory: &Path) {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).args(words).current_dir(directory);
    command.env_clear().envs(env.iter().cloned()).env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    let Ok(output) = command.output() else {
        println!("`valgrind` is not on the PATH: the instructions of {what} are not counted");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {said}");
    let count = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<f64>().ok());
    println!("instructions of {what}: {:.1} million", count.unwrap() / 1e6);
}
