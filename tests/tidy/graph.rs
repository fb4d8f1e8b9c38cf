//! The graph of imports between the files of `src`: which folder may import which, and where files
//! may import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{code, root, sources};

/// The folders, and those from which each may import. The arrows go downwards only.
const ARROWS: [(&str, &[&str]); 10] = [
    (
        "client",
        &[
            "config",
            "io",
            "io/driver",
            "io/open",
            "io/shared",
            "io/to_io",
            "io/to_program",
            "error",
            "protocol",
        ],
    ),
    ("config", &["io", "error", "protocol"]),
    ("io/open", &["io", "io/driver", "io/shared", "protocol"]),
    (
        "io/driver",
        &[
            "io",
            "io/shared",
            "io/to_io",
            "io/to_program",
            "error",
            "protocol",
        ],
    ),
    (
        "io/shared",
        &["io", "io/to_io", "io/to_program", "error", "protocol"],
    ),
    ("io/to_program", &["io", "io/loom", "io/to_io", "protocol"]),
    ("io/to_io", &["io", "io/loom", "protocol"]),
    ("io/loom", &["io/to_io", "io/to_program", "protocol"]),
    ("error", &["protocol"]),
    ("protocol", &[]),
];

/// Files that belong together so closely that they import each other: a connection hands out
/// channels, and a channel its connection; and their shared states hold each other.
const CIRCLES: [&str; 2] = ["client", "io/shared"];

/// The modules of the crate by path, such as `io::open`, with the modules that each imports.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn new() -> Self {
        let files: BTreeMap<String, String> = sources("src")
            .iter()
            .map(|path| (module_of(path), code(path)))
            .collect();
        let imports = files.iter().map(|(module, code)| {
            let paths = paths_in(code);
            let targets = paths
                .iter()
                .filter_map(|path| target_of(&files, module, path))
                .filter(|target| target != module && !target.is_empty());
            (module.clone(), targets.collect())
        });
        Self(imports.collect())
    }

    /// Returns the modules that can be reached from `module`.
    fn reachable(&self, module: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![module];
        while let Some(next) = open.pop() {
            for target in self.0.get(next).into_iter().flatten() {
                if found.insert(target.as_str()) {
                    open.push(target);
                }
            }
        }
        found
    }
}

/// Returns the module of a file: `io::open` for `src/io/open/mod.rs`, nothing for `src/lib.rs`.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let name = inside
        .with_extension("")
        .to_str()
        .unwrap()
        .replace('/', "::");
    let name = name.strip_suffix("::mod").unwrap_or(&name);
    match name {
        "lib" => String::new(),
        name => name.to_owned(),
    }
}

/// Returns the paths in `code` that begin with `crate`, `self` or `super`, each up to its first
/// brace. A nested import counts for each of its paths.
fn paths_in(code: &str) -> Vec<String> {
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line.trim(), " "]).collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for word in code.split(|c| !is_word(c)) {
        let word = word.trim_end_matches(':');
        if ["crate::", "self::", "super::"]
            .iter()
            .any(|start| word.starts_with(start))
        {
            found.push(word.to_owned());
        }
    }
    // `use super::{a::B, c};` names modules inside the braces.
    for import in code.split("use ").skip(1) {
        let import = import.split(';').next().unwrap_or_default();
        if let Some((start, names)) = import.split_once("::{") {
            let names = names.trim_end_matches('}').split(',').map(str::trim);
            found.extend(names.map(|name| format!("{start}::{name}")));
        }
    }
    found
}

/// Returns the module that has the item at `path`, as `module` names it.
fn target_of(files: &BTreeMap<String, String>, module: &str, path: &str) -> Option<String> {
    let mut absolute: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    for (index, part) in path.split("::").enumerate() {
        match part {
            "crate" if index == 0 => absolute.clear(),
            "self" if index == 0 => {}
            "super" => drop(absolute.pop()),
            part => absolute.push(part),
        }
    }
    let whole = (0..=absolute.len())
        .rev()
        .map(|length| absolute[..length].join("::"));
    whole.into_iter().find(|module| files.contains_key(module))
}

/// Returns the folder of [`ARROWS`] to which a module belongs.
fn folder_of(module: &str) -> &str {
    let path = module.replace("::", "/");
    let folders = ARROWS.iter().map(|(folder, _)| *folder);
    let inside = |folder: &&str| path == **folder || path.starts_with(&format!("{folder}/"));
    folders
        .filter(inside)
        .max_by_key(|folder| folder.len())
        .unwrap_or("io")
}

/// Returns whether one of two modules is the parent of the other, or both have the same parent that
/// is a module with content of its own. Such modules are parts of one.
fn are_parts_of_one(graph: &Graph, one: &str, other: &str) -> bool {
    let parent = |module: &str| {
        module
            .rsplit_once("::")
            .map(|(parent, _)| parent.to_owned())
    };
    let has_content = |parent: &Option<String>| {
        parent.as_ref().is_some_and(|parent| {
            graph
                .0
                .get(parent)
                .is_some_and(|imports| !imports.is_empty())
        })
    };
    let (above_one, above_other) = (parent(one), parent(other));
    above_one.as_deref() == Some(other)
        || above_other.as_deref() == Some(one)
        || above_one == above_other && has_content(&above_one)
}

#[test]
fn imports_go_downwards() {
    let graph = Graph::new();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    for (module, targets) in graph.0.iter().filter(|(module, _)| module.contains("::")) {
        let folder = folder_of(module);
        for target in targets {
            let to = folder_of(target);
            let allowed = folder == "io" || arrows[folder].contains(&to);
            if folder != to && !allowed {
                wrong.push(format!("{module} must not import {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let graph = Graph::new();
    let mut wrong = BTreeSet::new();
    for module in graph.0.keys() {
        for target in graph.reachable(module) {
            let is_circle = target != module && graph.reachable(target).contains(module.as_str());
            let folders = [folder_of(module), folder_of(target)];
            let is_allowed = folders[0] == folders[1] && CIRCLES.contains(&folders[0]);
            if is_circle && !is_allowed && !are_parts_of_one(&graph, module, target) {
                wrong.insert([module.as_str(), target]);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_graph_is_read_from_the_code() {
    let graph = Graph::new();
    let imports = |module: &str| &graph.0[module];
    assert!(imports("io::open").contains("io::driver::transport"));
    assert!(
        imports("protocol::channel::deliver").contains("protocol::event"),
        "super::super"
    );
    assert!(imports("error").contains("protocol::methods"), "in braces");
    assert!(imports("client::channel").contains("client::connection"));
    assert!(!imports("protocol::wire").contains("io::driver"));
}
