//! What the fuzzers have found, and what they start from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::TARGETS;

fn entries(folder: &Path) -> BTreeSet<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_entry_of_the_corpus_is_taken_in_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let folders = entries(&corpus);
    let expected = TARGETS.iter().map(|(name, _)| corpus.join(name)).collect();
    assert_eq!(folders, expected, "one folder for each target");
    for (name, target) in TARGETS {
        let entries = entries(&corpus.join(name));
        assert!(entries.len() >= 10, "{name} has {} entries", entries.len());
        for entry in entries {
            // Shown if it panics.
            eprintln!("{}", entry.display());
            target(&fs::read(&entry).unwrap());
        }
    }
}
