//! What the tree promises of itself.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "in a test, what fails should panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, but for unit tests.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|stem| stem == "tests") {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// The file without its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let end = [
        "#[cfg(test)]\nmod tests {",
        "#[cfg(test)]\npub(crate) mod tests {",
    ]
    .into_iter()
    .filter_map(|tests| text.find(tests))
    .min();
    match end {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The first segments of what a file takes from the crate.
fn imports(path: &Path) -> BTreeSet<String> {
    code(path)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| {
            line.split("crate::")
                .skip(1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        })
        .collect()
}

fn assert_imports_only(folder: &str, allowed: &[&str]) {
    for path in sources(folder) {
        for import in imports(&path) {
            assert!(
                allowed.contains(&import.as_str()),
                "{} must not use crate::{import}",
                path.display()
            );
        }
    }
}

#[test]
fn the_protocol_knows_nothing_of_the_rest() {
    // Documentation links are no imports; they are in comments.
    assert_imports_only("src/protocol", &[]);
    for path in sources("src/protocol") {
        let code = code(&path);
        for foreign in [
            "std::net",
            "std::thread",
            "Mutex",
            "Instant::now",
            "crossbeam",
            "mio::",
        ] {
            assert!(!code.contains(foreign), "{} has {foreign}", path.display());
        }
    }
}

#[test]
fn the_io_thread_knows_nothing_of_the_api() {
    assert_imports_only("src/io", &["io", "protocol", "error"]);
}

#[test]
fn the_api_touches_no_socket() {
    for path in sources("src") {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        if inside.starts_with("io") {
            continue;
        }
        let code = code(&path);
        for foreign in ["mio::", "socket2", "TcpStream", "ToSocketAddrs"] {
            assert!(!code.contains(foreign), "{} has {foreign}", path.display());
        }
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    for path in sources("src") {
        // The table of methods is as long as the protocol.
        let limit = match path.file_name().unwrap().to_str() {
            Some("methods.rs") => 700,
            _ => 540,
        };
        let lines = code(&path).lines().count();
        assert!(lines <= limit, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_example_is_short_and_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for path in sources("examples") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 80 || name == "perf", "{name} has {lines} lines");
        let link = format!("(examples/{name}.rs)");
        assert!(readme.contains(&link), "README.md does not list {name}");
    }
}

#[test]
fn the_direct_dependencies_are_the_agreed_ones() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let section = manifest.split("[dependencies]").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let found: Vec<&str> = section
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name)
        .collect();
    let agreed = [
        "bytes",
        "crossbeam-channel",
        "log",
        "mio",
        "native-tls",
        "parking_lot",
        "percent-encoding",
        "socket2",
        "url",
        "zeroize",
    ];
    assert_eq!(
        found, agreed,
        "a new one needs a reason in docs/decisions.md"
    );
}

/// The strings in that array of `.ci/deny.toml`.
fn listed(array: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(".ci/deny.toml")).unwrap();
    let rest = text.split(&format!("\n{array} = [")).nth(1).unwrap();
    let strings = rest.split(']').next().unwrap().split('"');
    let found: BTreeSet<String> = strings.skip(1).step_by(2).map(str::to_owned).collect();
    assert!(!found.is_empty(), "{array}");
    found
}

/// Whether one of the choices of a licence expression is allowed, in each of its parts.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    expression.split(" AND ").all(|part| {
        let choices = part.trim_matches(['(', ')']).replace('/', " OR ");
        choices.split(" OR ").any(|choice| allowed.contains(choice))
    })
}

#[test]
fn the_dependencies_keep_to_what_deny_toml_allows() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let registries = listed("allow-registry");
    for source in lock
        .lines()
        .filter_map(|line| line.strip_prefix("source = "))
    {
        let registry = source.trim_matches('"').strip_prefix("registry+");
        let known = registry.is_some_and(|registry| registries.contains(registry));
        assert!(known, "nothing may come from {source}");
    }

    for name in listed("deny") {
        let package = format!("\nname = \"{name}\"\n");
        assert!(!lock.contains(&package), "{name} is not wanted");
    }

    let allowed = listed("allow");
    for (package, licence) in licences() {
        assert!(is_allowed(&licence, &allowed), "{package}: {licence}");
    }
}

/// Every package that is built on this platform, and its licence.
fn licences() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--all-features"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}|{l}"])
        .current_dir(root())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {told}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let pairs: Vec<_> = lines
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(package, licence)| (package.to_owned(), licence.to_owned()))
        .collect();
    assert!(pairs.len() > 10, "{lines}");
    pairs
}
