//! Tests of the tree itself: layers, length of files, prose, dependencies.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "in a test, what fails should panic"
)]

mod graph;

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

/// Returns the file without its unit tests.
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

/// Returns the first segments of the paths in the crate that a file uses.
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

/// The files and folders whose prose is checked, each on its own.
const PROSE: [&str; 11] = [
    "README.md",
    "CHANGELOG.md",
    "docs",
    "examples",
    "src/client",
    "src/config",
    "src/error",
    "src/io",
    "src/protocol",
    "src",
    "tests",
];

/// Words that stand for a noun which the reader then has to guess.
const VAGUE_WORDS: [&str; 10] = [
    "what",
    "whatever",
    "who",
    "whoever",
    "whom",
    "nobody",
    "somebody",
    "everybody",
    "everyone",
    "anybody",
];

/// How many of them 1000 words may contain.
const VAGUE_WORDS_MAX: usize = 3;

const PROSE_COLUMNS: usize = 100;

#[derive(Default)]
struct ProseCount {
    words: usize,
    vague: usize,
    /// Lines with a sentence that begins with a vague word.
    starts: Vec<String>,
    /// Lines of prose that are too long.
    long: Vec<String>,
}

impl ProseCount {
    fn of(path: &Path) -> Self {
        let mut count = Self::default();
        let Ok(text) = fs::read_to_string(path) else {
            return count;
        };
        let is_markdown = path.extension().is_some_and(|extension| extension == "md");
        for prose in prose_of(&text, is_markdown) {
            let place = || format!("{}:{}", path.display(), prose.number);
            let is_heading = is_markdown && prose.text.starts_with('#');
            let text = without_code_and_links(prose.text);
            for word in text.split(|c: char| !c.is_alphabetic()) {
                let is_vague = VAGUE_WORDS.contains(&word.to_lowercase().as_str());
                count.words += usize::from(!word.is_empty());
                count.vague += usize::from(is_vague);
                if is_vague && word.starts_with(char::is_uppercase) && !is_heading {
                    count.starts.push(place());
                }
            }
            if prose.is_too_long() {
                count.long.push(place());
            }
        }
        count
    }

    fn add(&mut self, mut other: Self) {
        self.words += other.words;
        self.vague += other.vague;
        self.starts.append(&mut other.starts);
        self.long.append(&mut other.long);
    }

    fn is_plain(&self) -> bool {
        self.vague * 1000 <= self.words * VAGUE_WORDS_MAX
            && self.starts.is_empty()
            && self.long.is_empty()
    }

    fn summary(&self) -> String {
        let in_thousand = self.vague * 1000 / self.words.max(1);
        format!(
            "{in_thousand} vague words in 1000 ({} of {}), {} at the beginning of a sentence, {} long lines",
            self.vague,
            self.words,
            self.starts.len(),
            self.long.len()
        )
    }
}

/// A line of a document or of a comment.
struct Prose<'a> {
    number: usize,
    text: &'a str,
    /// The line with its indentation and comment marker; none for a comment in an example.
    whole: Option<&'a str>,
}

impl Prose<'_> {
    fn is_too_long(&self) -> bool {
        let text = self.text.trim();
        let is_link = text.starts_with('[') && text.contains("]: ");
        let is_table = text.starts_with('|');
        let can_be_wrapped = text.split_whitespace().all(|word| word.len() <= 60);
        self.whole
            .is_some_and(|line| line.chars().count() > PROSE_COLUMNS)
            && !is_link
            && !is_table
            && can_be_wrapped
    }
}

/// The comments of a source file, or the text of a document, and the comments in examples of both.
fn prose_of(text: &str, is_markdown: bool) -> Vec<Prose<'_>> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let is_comment = trimmed.starts_with("//");
        let inner = match is_markdown {
            true => line,
            false => trimmed.trim_start_matches(['/', '!']),
        };
        if !is_markdown && !is_comment {
            fence = None;
        }
        let is_prose = is_markdown || is_comment;
        let (text, whole) = match (is_prose, inner.trim().strip_prefix("```"), fence) {
            (true, Some(language), None) => {
                fence = Some(language);
                continue;
            }
            (true, Some(_), Some(_)) => {
                fence = None;
                continue;
            }
            (true, None, None) => (Some(inner), Some(line)),
            (true, None, Some("text" | "sh" | "toml")) => continue,
            (true, None, Some(_)) => (comment_behind(inner), None),
            (false, ..) => (comment_behind(line), Some(line)),
        };
        found.extend(text.map(|text| Prose {
            number: index + 1,
            text,
            whole,
        }));
    }
    found
}

/// The comment at the end of a line of code. The slashes of a URL are no comment.
fn comment_behind(line: &str) -> Option<&str> {
    line.match_indices("//").find_map(|(at, _)| {
        let (code, comment) = line.split_at(at);
        let quotes = code.replace("\\\"", "").replace("'\"'", "");
        let is_outside_text = quotes.matches('"').count() % 2 == 0;
        let is_separate = code.is_empty() || code.ends_with(char::is_whitespace);
        (is_outside_text && is_separate).then(|| comment.trim_start_matches('/'))
    })
}

/// The line without code, and without the targets of links.
fn without_code_and_links(line: &str) -> String {
    let outside: Vec<&str> = line.split('`').step_by(2).collect();
    let mut text = outside.join(" ");
    while let Some(start) = text.find("](") {
        let end = text[start..]
            .find(')')
            .map_or(text.len(), |end| start + end + 1);
        text.replace_range(start..end, " ");
    }
    text.split_whitespace()
        .filter(|word| !word.contains("://"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The file, or all documents and source files below the folder, in order.
fn prose_files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    entries
        .iter()
        .flat_map(|path| prose_files(path))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "md" || extension == "rs")
        })
        .collect()
}

/// The count of a file or folder of the tree, which prints the count of each file in it.
fn count_prose(area: &str) -> ProseCount {
    let mut sum = ProseCount::default();
    for path in prose_files(&root().join(area)) {
        let count = ProseCount::of(&path);
        let name = path.strip_prefix(root()).unwrap().display();
        if !count.is_plain() {
            println!("  {name}: {}", count.summary());
        }
        sum.add(count);
    }
    println!("{area}: {}", sum.summary());
    sum
}

#[test]
fn prose_is_plain_english() {
    let mut faults = Vec::new();
    for area in PROSE {
        let count = count_prose(area);
        assert!(count.words > 0, "{area} has no prose");
        if !count.is_plain() {
            faults.push(format!(
                "{area}: {}\n  sentences: {:?}\n  lines: {:?}",
                count.summary(),
                count.starts,
                count.long
            ));
        }
    }
    assert!(
        faults.is_empty(),
        "see \"Names and prose\" in docs/contributing.md:\n{}",
        faults.join("\n")
    );
}

#[test]
fn vague_words_and_long_lines_are_found_in_prose_only() {
    let long = "word ".repeat(25);
    let source = format!(
        "/// Returns what comes. Who waits?\n/// ```\n/// let what = 1; // nobody\n/// ```\n\
         let url = \"amqp://who\"; // `what`\n// {long}\nlet x = \"{long}\";\n"
    );
    let found: Vec<(usize, &str, bool)> = prose_of(&source, false)
        .iter()
        .map(|prose| (prose.number, prose.text.trim(), prose.is_too_long()))
        .collect();
    let expected = [
        (1, "Returns what comes. Who waits?", false),
        (3, "nobody", false),
        (5, "`what`", false),
        (6, long.trim(), true),
    ];
    assert_eq!(found, expected);
    assert_eq!(without_code_and_links("`who` [asks](what)"), "[asks");
}

/// All files of the tree that documents may name, relative to its root.
fn files_of_the_tree() -> Vec<String> {
    let mut folders: Vec<PathBuf> = ["src", "tests", "examples", "docs", ".ci"]
        .iter()
        .map(|folder| root().join(folder))
        .collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside = path.strip_prefix(root()).unwrap();
                found.push(inside.to_str().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn documents_name_files_that_exist() {
    let files = files_of_the_tree();
    let mut missing = Vec::new();
    for document in fs::read_dir(root().join("docs")).unwrap() {
        let document = document.unwrap().path();
        if document
            .extension()
            .is_none_or(|extension| extension != "md")
        {
            continue;
        }
        let text = fs::read_to_string(&document).unwrap();
        // A document may leave out the first folders: `driver/events.rs`.
        for name in text.split('`').filter(|span| span.ends_with(".rs")) {
            let end = format!("/{name}");
            if !files
                .iter()
                .any(|file| file == name || file.ends_with(&end))
            {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_design_names_functions_and_types_that_exist() {
    let is_part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = BTreeSet::new();
    for path in sources("src").into_iter().chain(sources("tests")) {
        // A name that only unit tests mention is no part of the design.
        let text = code(&path);
        let found = text.split(|c: char| !is_part_of_name(c));
        words.extend(found.map(str::to_owned));
    }
    let design = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let spans = design.split('`').skip(1).step_by(2);
    let names = spans.filter(|span| span.chars().all(|c| is_part_of_name(c) || c == ':'));
    let missing: Vec<&str> = names
        .filter(|name| !name.split("::").all(|part| words.contains(part)))
        .collect();
    assert!(missing.is_empty(), "not in the sources: {missing:?}");
}

/// Returns the names in code spans that `text` places in a file, with this file: "`a` and `b` in
/// `c.rs`" or "`a`, `c.rs`".
fn names_in_files(text: &str) -> Vec<(&str, &str)> {
    let is_name = |span: &str| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        span.starts_with(char::is_alphabetic) && span.chars().all(is_part)
    };
    let parts: Vec<&str> = text.split('`').collect();
    let mut found = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    // The parts are in turn text and code spans.
    for pair in parts.chunks_exact(2) {
        let [between, span] = pair else { continue };
        let words: Vec<&str> = between.split_whitespace().collect();
        let continues = matches!(words[..], [","] | ["and"] | [",", "and"]);
        if span.ends_with(".rs") && (continues || words == ["in"]) {
            found.extend(names.drain(..).map(|name| (name, *span)));
        }
        if !continues {
            names.clear();
        }
        if is_name(span) {
            names.push(span);
        }
    }
    found
}

#[test]
fn a_name_belongs_to_the_file_that_follows_it() {
    let text = "`A` has `b`, `c` and `D::e` in `f.rs`. `g`, `h.rs`; `i` of\n`j.rs`";
    let expected = [
        ("b", "f.rs"),
        ("c", "f.rs"),
        ("D::e", "f.rs"),
        ("g", "h.rs"),
    ];
    assert_eq!(names_in_files(text), expected);
}

#[test]
fn the_design_names_the_files_that_define_its_functions() {
    let files = files_of_the_tree();
    let design = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let names = names_in_files(&design);
    assert!(names.len() > 20, "{names:?}");
    let mut wrong = Vec::new();
    for (name, file) in names {
        let last = name.rsplit("::").next().unwrap();
        let end = format!("/{file}");
        let is_defined = files
            .iter()
            .filter(|path| *path == file || path.ends_with(&end))
            .any(|path| defines(&code(&root().join(path)), last));
        if !is_defined {
            wrong.push(format!("`{name}` in `{file}`"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns whether `code` defines a function, a type, a constant or an implementation with this
/// name.
fn defines(code: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "trait", "type", "const"];
    let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    let mut before = ("", "");
    words.any(|word| {
        let is_definition = kinds.contains(&before.1) || before == ("impl", "fmt");
        before = if word.is_empty() {
            before
        } else {
            (before.1, word)
        };
        is_definition && word == name
    })
}
