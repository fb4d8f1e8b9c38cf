//! Replays the corpus of the fuzzers: past findings and the inputs that a search starts from.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::TARGETS;

fn entries(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Returns whether this is the published package, which has no corpus. cargo adds the file
/// `Cargo.toml.orig` to every package.
fn is_published_package(root: &Path) -> bool {
    root.join("Cargo.toml.orig").exists()
}

#[test]
fn no_target_panics_on_an_entry_of_its_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if is_published_package(root) {
        return TARGETS.iter().for_each(|(_, target)| target(&[]));
    }
    let corpus = root.join("tests/fuzz/corpus");
    let folders = entries(&corpus);
    let expected = TARGETS.iter().map(|(name, _)| corpus.join(name)).collect();
    assert_eq!(folders, expected, "one folder for each target");
    for (name, target) in TARGETS {
        let entries = entries(&corpus.join(name));
        assert!(entries.len() >= 10, "{name} has {} entries", entries.len());
        for entry in entries {
            // The test prints the entry if the target panics.
            eprintln!("{}", entry.display());
            target(&fs::read(&entry).unwrap());
        }
    }
}
