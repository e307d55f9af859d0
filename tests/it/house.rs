//! The folder list is the architecture: imports point down, files stay small, the house has no lumber room.

use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may import besides itself.
const LAYERS: [(&str, &[&str]); 10] = [
    ("postgres", &[]),
    ("stream", &["postgres"]),
    ("disk", &["postgres", "stream"]),
    ("server", &["postgres"]),
    ("storage", &["stream"]),
    ("repo", &["postgres", "stream", "storage"]),
    ("command", &["postgres", "stream", "storage", "repo", "disk", "server"]),
    ("page", &["postgres", "repo", "command"]),
    ("cli", &["postgres", "stream", "storage", "repo", "disk", "server", "command", "page", "serve"]),
    ("serve", &["postgres", "stream", "storage", "repo", "disk", "server", "command", "page"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    assert!(files.len() > 40, "only {} files", files.len());
    files
}

fn layer(path: &Path) -> Option<String> {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    (below.components().count() > 1).then(|| below.iter().next().unwrap().to_string_lossy().into_owned())
}

/// The layers that the text names: `crate::x`, wherever it stands.
fn named_layers(text: &str) -> Vec<String> {
    let names = text
        .split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>());
    names.filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(layer) = layer(&path) else { continue };
        let (_, allowed) =
            LAYERS.iter().find(|(name, _)| *name == layer).unwrap_or_else(|| panic!("unknown layer {layer}"));
        for named in named_layers(&text) {
            let known = LAYERS.iter().any(|(name, _)| *name == named);
            if known && named != layer && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {layer} must not import {named}", path.display()));
            }
        }
        assert!(!text.contains("use crate::{"), "{}: write one `use crate::x` a line", path.display());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lower_layers_leave_the_world_alone() {
    for (path, text) in sources() {
        let product = text.split("#[cfg(test)]").next().unwrap();
        // `main.rs` and `lib.rs` are in no layer.
        let Some(layer) = layer(&path) else { continue };
        let forbidden: &[&str] = match layer.as_str() {
            "postgres" => &["std::fs", "std::net", "SystemTime", "tokio", "println"],
            "repo" | "page" => &["std::fs", "SystemTime::now", "Timestamp::now", "std::env"],
            "command" => &["std::env::var", "std::env::args", "process::exit"],
            "cli" => &["process::exit"],
            _ => &["process::exit", "std::env::args"],
        };
        for word in forbidden {
            assert!(!product.contains(word), "{}: {layer} must not use {word}", path.display());
        }
    }
}

/// Such a module is tests, whatever file it stands in.
fn is_for_tests_only(path: &Path) -> bool {
    let parent = fs::read_to_string(path.with_file_name("mod.rs")).unwrap_or_default();
    parent.contains(&format!("#[cfg(test)]\nmod {};", path.file_stem().unwrap().to_string_lossy()))
}

#[test]
fn files_are_small_and_say_what_they_are_for() {
    for (path, text) in sources() {
        if is_for_tests_only(&path) {
            continue;
        }
        let product = text.split("\n#[cfg(test)]").next().unwrap();
        let lines = product.lines().count();
        assert!(lines <= 400, "{} has {lines} lines without its tests", path.display());
        assert!(text.starts_with("//! "), "{} does not say what it is for", path.display());
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!["util", "utils", "common", "helpers", "misc"].contains(&name.as_str()), "{}", path.display());
    }
}
