//! What the configuration in a data directory says, with the files that it includes.
//!
//! As PostgreSQL reads it: the last line of a name wins, and `postgresql.auto.conf` comes last. What cannot be read is passed over: the
//! server itself will complain.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::postgres::conf_line::ConfLine;

/// The settings of a server that was not started yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSettings {
    values: BTreeMap<String, String>,
    has_main: bool,
}

const MAIN: &str = "postgresql.conf";
const AUTO: &str = "postgresql.auto.conf";
/// `CONF_FILE_MAX_DEPTH` in `utils/conffiles.h`.
const DEEPEST: usize = 10;
/// More files are a mistake, or an attack.
const MOST_FILES: usize = 1000;
const LARGEST: u64 = 4 << 20;

impl ServerSettings {
    /// Reads them.
    pub fn read(root: &Path) -> Self {
        let mut settings = ServerSettings { has_main: root.join(MAIN).is_file(), ..Self::default() };
        let mut files = 0;
        for file in [MAIN, AUTO] {
            settings.file(&root.join(file), 0, &mut files);
        }
        settings
    }

    /// The value of a setting, by its name in lower case; `None` if no line gives one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether `postgresql.conf` is there: on Debian, for one, it lies elsewhere.
    pub fn has_main(&self) -> bool {
        self.has_main
    }

    fn file(&mut self, path: &Path, depth: usize, files: &mut usize) {
        *files += 1;
        let readable = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= LARGEST);
        if depth > DEEPEST || *files > MOST_FILES || !readable {
            return;
        }
        let Ok(text) = fs::read(path) else { return };
        let around = path.parent().unwrap_or(path);
        for ConfLine { name, value } in String::from_utf8_lossy(&text).lines().filter_map(ConfLine::parse) {
            match name.as_str() {
                "include" | "include_if_exists" => self.file(&around.join(value), depth + 1, files),
                "include_dir" => {
                    configurations(&around.join(value)).iter().for_each(|file| self.file(file, depth + 1, files));
                }
                _ => drop(self.values.insert(name, value)),
            }
        }
    }
}

/// The files of an `include_dir`, in the order in which they are read.
fn configurations(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let counts = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.ends_with(".conf") && !n.starts_with('.'))
    };
    let mut files: Vec<PathBuf> = entries.filter(counts).collect();
    files.sort_unstable();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_files_count_and_the_last_line_wins() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        assert_eq!(ServerSettings::read(place.path()), ServerSettings::default());
        fs::create_dir_all(place.path().join("conf.d/sub")).unwrap();
        write(
            "postgresql.conf",
            "A = 1\nb = 1\ninclude_dir 'conf.d'\nInclude = 'more'\ninclude_if_exists 'none'\ng = 1\n",
        );
        write("conf.d/2.conf", "a = 3\nc = 3\n");
        write("conf.d/1.conf", "a = 2\ninclude 'sub/deep'\n");
        write("conf.d/sub/deep", "d = 4\n");
        write("conf.d/.3.conf", "a = 9\n");
        write("conf.d/3.conf~", "a = 9\n");
        write("more", "b = 5\ninclude 'more'\n");
        write("postgresql.auto.conf", "g = '6'\n");
        let settings = ServerSettings::read(place.path());
        let expected = [("a", "3"), ("b", "5"), ("c", "3"), ("d", "4"), ("g", "6")];
        assert_eq!(settings.values.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
        assert!(settings.has_main());
        assert_eq!(settings.get("e"), None);
    }

    #[test]
    fn no_end_and_no_pipe_holds_it_up() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("d")).unwrap();
        let conf = "include '/dev/zero'\ninclude 'pipe'\ninclude_dir 'd'\nx = 1\n";
        fs::write(place.path().join("postgresql.conf"), conf).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(place.path().join("pipe")).status().unwrap();
        assert!(pipe.success());
        // Each of ten includes all ten, ten times deep.
        for number in 0..10 {
            fs::write(place.path().join(format!("d/{number}.conf")), "include_dir '.'\n").unwrap();
        }
        assert_eq!(ServerSettings::read(place.path()).get("x"), Some("1"));
    }
}
