//! What `docs/from-pika.md` says is so: every name of pika 0.9.6 has a row, and whatever
//! the rows name exists. `from_pika.txt` has the names of pika.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "in a test, what fails should panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cony::{ConnectionParameters, MethodId};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of pika, each with its signature or value.
fn names_of_pika() -> BTreeSet<String> {
    let list = read("tests/from_pika.txt");
    let names: Vec<String> = list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let set: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "a name is there twice");
    set
}

/// A row of the page: the names in it, without their backticks.
struct Row {
    modules: Vec<String>,
    pika: Vec<String>,
    cony: Vec<String>,
    proofs: Vec<String>,
}

fn in_backticks(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of all tables with three columns.
fn rows() -> Vec<Row> {
    let page = read("docs/from-pika.md");
    let mut rows = Vec::new();
    let mut modules = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [pika, cony, proofs] = cells[..] else {
            continue;
        };
        if lines.peek() == Some(&"|---|---|---|") {
            modules = in_backticks(pika);
            lines.next();
            continue;
        }
        rows.push(Row {
            modules: modules.clone(),
            pika: in_backticks(pika),
            cony: in_backticks(cony),
            proofs: in_backticks(proofs),
        });
    }
    assert!(rows.len() > 100, "only {} rows were understood", rows.len());
    rows
}

/// Whether `name` is what `pattern` says; a `*` stands for anything without a dot.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(rest) = name.strip_prefix(before) else {
        return false;
    };
    let end = rest.find('.').unwrap_or(rest.len());
    (0..=end)
        .filter(|at| rest.is_char_boundary(*at))
        .any(|at| matches(after, &rest[at..]))
}

#[test]
fn a_star_stands_for_one_part_of_a_name() {
    assert!(matches("a.*Poller.poll()", "a.SelectPoller.poll()"));
    assert!(matches("*.*.NAME = '*.*'", "Basic.Ack.NAME = 'Basic.Ack'"));
    assert!(!matches("a.*.b", "a.c.d.b"));
    assert!(!matches("a.*", "a"));
}

#[test]
fn every_name_of_pika_has_a_row_and_every_row_is_about_one() {
    let names = names_of_pika();
    let mut missing = names.clone();
    for row in rows() {
        for module in &row.modules {
            missing.remove(module);
        }
        assert!(!row.pika.is_empty(), "a row without a name of pika");
        for name in &row.pika {
            let patterns = row.modules.iter().map(|module| format!("{module}.{name}"));
            let found: Vec<String> = patterns
                .flat_map(|pattern| names.iter().filter(move |name| matches(&pattern, name)))
                .cloned()
                .collect();
            assert!(!found.is_empty(), "pika has no {name} in {:?}", row.modules);
            for name in found {
                missing.remove(&name);
            }
        }
    }
    assert!(missing.is_empty(), "docs/from-pika.md lacks {missing:#?}");
}

/// The files of `src/`, without unit tests and comments.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(code(&fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn code(text: &str) -> String {
    let end = text.find("\nmod tests {").unwrap_or(text.len());
    text[..end]
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether `line` begins with `start`, and the word that it ends with ends there.
fn begins(line: &str, start: &str) -> bool {
    line.strip_prefix(start)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Whether `line` is where something public has its name from: an item, a variant, a field,
/// or an entry of one of the macros that make them.
fn declares(line: &str, name: &str) -> bool {
    let items = ["pub fn", "pub struct", "pub enum", "pub trait", "pub const", "fn", "class"];
    let is_item = items.iter().any(|item| match *item {
        // In a trait; anywhere else a function that ends like this has no body.
        "fn" => begins(line, &format!("fn {name}")) && line.ends_with(';'),
        item => begins(line, &format!("{item} {name}")),
    });
    let is_variant = name.starts_with(char::is_uppercase)
        && [format!("{name}("), format!("{name},"), format!("{name} {{")]
            .iter()
            .any(|variant| line.starts_with(variant));
    let is_code = line.strip_prefix(name).is_some_and(|rest| {
        rest.strip_prefix(" = ")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    // `BasicGetOk = GetOk 71 "basic.get-ok"`
    let is_method = line
        .split_once(" = ")
        .is_some_and(|(_, rest)| begins(rest, name) && rest.contains(" \""));
    let is_field = begins(line, &format!("pub {name}")) && line.contains(": ")
        || begins(line, name) && line[name.len()..].starts_with(": ") && line.ends_with([',', ';']);
    is_item || is_variant || is_code || is_method || is_field
}

/// Whether the file is, or adds to, the type or module `owner`.
fn is_about(file: &str, owner: &str) -> bool {
    file.lines().any(|line| {
        declares(line, owner)
            || begins(line, &format!("impl {owner}"))
            || line.starts_with("impl") && line.contains(&format!(" for {owner} {{"))
    })
}

fn exists(files: &[String], name: &str) -> bool {
    if let Some(option) = name.strip_prefix('?') {
        let quoted = format!("\"{option}\"");
        return files
            .iter()
            .any(|file| file.contains("Query") && file.contains(&quoted));
    }
    let parts: Vec<&str> = name.split("::").collect();
    match parts[..] {
        [name] => files
            .iter()
            .any(|file| file.lines().any(|line| declares(line, name))),
        [.., owner, member] => files.iter().any(|file| {
            is_about(file, owner) && file.lines().any(|line| declares(line, member))
        }),
        [] => false,
    }
}

#[test]
fn every_name_of_cony_exists() {
    let files = sources();
    for name in ["BlockingChannel::basic_frobnicate", "Error::Frob", "?frob", "queue::Get"] {
        assert!(!exists(&files, name), "{name}: the search finds anything");
    }
    // Said in passing; Rust's own.
    let of_rust = ["Duration", "from_str", "try_from", "Option", "Default", "_nowait"];
    let mut missing = BTreeSet::new();
    for name in rows().iter().flat_map(|row| &row.cony) {
        if !of_rust.contains(&name.as_str()) && !exists(&files, name) {
            missing.insert(name.clone());
        }
    }
    assert!(missing.is_empty(), "there is no {missing:#?} in src/");
}

/// Whether `file` has a test of that name.
fn has_test(file: &str, name: &str) -> bool {
    let mut is_test = false;
    for line in file.lines().map(str::trim) {
        if begins(line, &format!("fn {name}")) && is_test {
            return true;
        }
        is_test = line == "#[test]" || is_test && line.starts_with("#[");
    }
    false
}

#[test]
fn every_test_and_example_exists() {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for row in rows() {
        assert!(!row.proofs.is_empty(), "nothing proves {:?}", row.pika);
        for proof in &row.proofs {
            let Some((file, test)) = proof.split_once("::") else {
                assert!(read(proof).contains("fn main()"), "{proof} is no example");
                continue;
            };
            let path = match file.starts_with("src/") {
                true => format!("{file}.rs"),
                false => format!("tests/{file}.rs"),
            };
            let text = files
                .entry(path)
                .or_insert_with_key(|path| read(path));
            assert!(has_test(text, test), "there is no test {proof}");
        }
    }
}

/// The same word in pika's spelling and in that of the specification: `RecoverAsync` and
/// `recover-async`.
fn in_lower_case(name: &str) -> String {
    let mut lower = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !lower.is_empty() {
            lower.push('-');
        }
        lower.extend(c.to_lowercase());
    }
    lower
}

#[test]
fn the_methods_have_pikas_names_and_numbers() {
    let mut count = 0;
    for name in names_of_pika() {
        let Some((name, index)) = name.split_once(".INDEX = ") else {
            continue;
        };
        let Some((class, method)) = name
            .strip_prefix("pika.spec.")
            .and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        let index: u32 = index.parse().unwrap();
        let [class_high, class_low, high, low] = index.to_be_bytes();
        let id = MethodId {
            class: u16::from_be_bytes([class_high, class_low]),
            method: u16::from_be_bytes([high, low]),
        };
        let expected = format!("{}.{}", in_lower_case(class), in_lower_case(method));
        assert_eq!(id.name(), Some(expected.as_str()), "{index}");
        count += 1;
    }
    assert_eq!(count, 62);
}

#[test]
fn the_defaults_are_those_that_the_page_says() {
    let shown = format!("{:?}", ConnectionParameters::new());
    for default in [
        "host: \"localhost\"",
        "port: 5672",
        "virtual_host: \"/\"",
        "credentials: Plain(\"guest\", ***)",
        "channel_max: 2047",
        "frame_max: 131072",
        "heartbeat: 60s",
        "tls: false",
        "connection_attempts: 1",
        "retry_delay: 2s",
        "socket_timeout: 10s",
        "locale: \"en_US\"",
        "backpressure_detection: false",
        "default_prefetch: 1000",
    ] {
        assert!(shown.contains(default), "{default} is not in {shown}");
    }
}
