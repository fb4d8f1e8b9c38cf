//! Checks `docs/from-pika.md`: every name of pika 0.9.6 has a row, and every name in a row exists.
//! `from_pika.txt` has the names of pika.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a failure in a test should panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cony::{ConnectionParameters, MethodId};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the names of pika, each with its signature or value.
fn names_of_pika() -> BTreeSet<String> {
    let list = read("tests/from_pika.txt");
    let names: Vec<String> = list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let set: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "a name occurs twice");
    set
}

/// A row of a table: the names in its cells, without their backticks.
struct Row {
    modules: Vec<String>,
    pika: Vec<String>,
    cony: Vec<String>,
    proofs: Vec<String>,
}

fn in_backticks(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Returns the rows of all tables with three columns.
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

/// Returns whether `name` fits `pattern`, in which a `*` stands for any text without a dot.
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
fn every_name_of_pika_has_a_row_and_every_row_has_a_name_of_pika() {
    let names = names_of_pika();
    let mut missing = names.clone();
    for row in rows() {
        for module in &row.modules {
            missing.remove(module);
        }
        assert!(!row.pika.is_empty(), "a row has no name of pika");
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

/// Returns the items of `src/`, without unit tests and comments. An item begins with a line that is
/// not indented, and ends before the next one. A method of the protocol includes its class.
fn items() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.extend(items_of(&fs::read_to_string(&path).unwrap())),
            }
        }
    }
    found
}

fn items_of(text: &str) -> Vec<String> {
    let end = text.find("\nmod tests {").unwrap_or(text.len());
    let mut items: Vec<String> = Vec::new();
    let mut class = "";
    for line in text[..end].lines() {
        let code = line.trim();
        if code.starts_with("//") || code.starts_with("#[") {
            continue;
        }
        if code.starts_with("class ") {
            class = code;
        }
        if line.starts_with(char::is_alphabetic) {
            items.push(of_macro(&items, line));
        } else if code.starts_with("class ") || is_method_row(code) {
            items.push(class.to_owned());
        }
        if let Some(item) = items.last_mut() {
            item.push('\n');
            item.push_str(code);
        }
    }
    items
}

/// Returns the definition of the macro that `line` calls: it has the names that the macro makes.
fn of_macro(items: &[String], line: &str) -> String {
    let Some(name) = line.strip_suffix("! {") else {
        return String::new();
    };
    let definition = format!("\nmacro_rules! {name} {{");
    let definition = items.iter().find(|item| item.starts_with(&definition));
    definition.cloned().unwrap_or_default()
}

/// Returns whether `line` is a row of the table of methods, such as
/// `BasicGetOk = GetOk 71 "basic.get-ok"`.
fn is_method_row(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').take(5).collect();
    matches!(words[..], [_, "=", _, id, name, ..] if id.parse::<u16>().is_ok() && name.starts_with('"'))
}

/// Returns whether `line` begins with `start`, and its last word does not go on.
fn begins(line: &str, start: &str) -> bool {
    line.strip_prefix(start)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Returns whether `line` declares a type, a trait or a module of this name.
fn declares_owner(line: &str, name: &str) -> bool {
    let items = ["pub struct", "pub enum", "pub trait", "class"];
    let is_method = is_method_row(line) && line.split(' ').nth(2) == Some(name);
    is_method
        || items
            .iter()
            .any(|item| begins(line, &format!("{item} {name}")))
}

/// Returns whether `line` declares a public item of this name: a type, a function, a variant, a
/// field, or an entry of a macro that makes one of these.
fn declares(line: &str, name: &str) -> bool {
    let rest = match line.strip_prefix(name) {
        _ if declares_owner(line, name) || begins(line, &format!("pub fn {name}")) => return true,
        // A method of a trait. Elsewhere a function has a body.
        None => {
            return begins(line, &format!("fn {name}(")) && line.ends_with(';')
                || begins(line, &format!("pub {name}")) && line.contains(": ");
        }
        Some(rest) => rest,
    };
    let is_variant = name.starts_with(char::is_uppercase)
        && (rest.starts_with(['(', ',']) || rest.starts_with(" {"));
    let is_field = rest.starts_with(": ") && line.ends_with([',', ';']);
    let is_code = rest
        .strip_prefix(" = ")
        .is_some_and(|value| value.parse::<u16>().is_ok());
    // A row of `settings!`, with the setter and its getter.
    let is_setting = rest.starts_with('(') && line.contains(" get_") && line.ends_with(';');
    is_variant || is_field || is_code || is_setting
}

/// Returns whether the item declares the type or module `owner`, or implements methods for it.
fn is_about(item: &str, owner: &str) -> bool {
    let added = [format!("impl {owner}"), format!("impl<'a> {owner}")];
    let of_settings = format!("{owner};");
    item.lines().any(|line| {
        line == of_settings
            || declares_owner(line, owner)
            || added.iter().any(|start| begins(line, start))
    })
}

fn exists(items: &[String], name: &str) -> bool {
    if let Some(option) = name.strip_prefix('?') {
        let quoted = format!("\"{option}\"");
        return items
            .iter()
            .any(|item| item.starts_with("\nfn option(") && item.contains(&quoted))
            || items
                .iter()
                .any(|item| item.starts_with("\nconst TLS_OPTIONS") && item.contains(&quoted));
    }
    let parts: Vec<&str> = name.split("::").filter(|part| *part != "methods").collect();
    let Some((member, owners)) = parts.split_last() else {
        return false;
    };
    items.iter().any(|item| {
        owners.iter().all(|owner| is_about(item, owner))
            && item.lines().any(|line| declares(line, member))
    })
}

#[test]
fn every_name_of_cony_exists() {
    let items = items();
    for name in [
        "BlockingChannel::basic_frobnicate",
        "Error::Frob",
        "?frob",
        "queue::Get",
        "queue::Bind::if_empty",
        "Error::TimedOut",
    ] {
        assert!(
            !exists(&items, name),
            "{name}: the search finds names that do not exist"
        );
    }
    // Names of Rust's own that the page mentions.
    let of_rust = [
        "Duration", "from_str", "try_from", "Option", "Default", "_nowait",
    ];
    let rows = rows();
    let mut missing: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| row.cony.iter().map(String::as_str))
        .collect();
    missing.retain(|name| !of_rust.contains(name) && !exists(&items, name));
    assert!(missing.is_empty(), "there is no {missing:#?} in src/");
}

/// Returns whether `file` has a test of this name.
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
        assert!(!row.proofs.is_empty(), "{:?} has no test", row.pika);
        for proof in &row.proofs {
            let Some((file, test)) = proof.split_once("::") else {
                assert!(
                    read(proof).contains("fn main()"),
                    "{proof} is not an example"
                );
                continue;
            };
            let path = match file.starts_with("src/") {
                true => format!("{file}.rs"),
                false => format!("tests/{file}.rs"),
            };
            let text = files.entry(path).or_insert_with_key(|path| read(path));
            assert!(has_test(text, test), "there is no test {proof}");
        }
    }
}

/// Converts pika's spelling to that of the specification: `RecoverAsync` to `recover-async`.
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
        let id = MethodId::new(
            u16::from_be_bytes([class_high, class_low]),
            u16::from_be_bytes([high, low]),
        );
        let expected = format!("{}.{}", in_lower_case(class), in_lower_case(method));
        assert_eq!(id.name(), Some(expected.as_str()), "{index}");
        count += 1;
    }
    assert_eq!(count, 62);
}

#[test]
fn the_defaults_are_the_ones_on_the_page() {
    let shown = format!("{:?}", ConnectionParameters::new());
    for default in [
        "host: \"localhost\"",
        "port: 5672",
        "virtual_host: \"/\"",
        "credentials: Plain(\"guest\", ***)",
        "channel_max: 2047",
        "frame_max: 131072",
        "heartbeat: 10s",
        "tls: false",
        "connection_attempts: 1",
        "retry_delay: 2s",
        "socket_timeout: 10s",
        "locale: \"en_US\"",
        "backpressure_detection: false",
        "handshake_timeout: 15s",
        "rpc_timeout: 30s",
        "publish_timeout: 120s",
        "close_timeout: 10s",
        "drop_timeout: 2s",
        "blocked_connection_timeout: None",
        "max_message_size: 134217728",
        "default_prefetch: 200",
        "confirm_window: 1000",
        "write_budget: 4194304",
        "unconfirmed_budget: 16777216",
        "read_budget: 67108864",
    ] {
        assert!(shown.contains(default), "{default} is not in {shown}");
    }
}
