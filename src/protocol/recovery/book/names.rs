//! The names of queues: those that cony has made, those that it had to replace, and the empty one.

use std::collections::HashMap;

use super::super::super::wire::ShortString;

/// The prefix of the names that cony makes for queues that are declared with an empty name.
///
/// The broker would make a name with the prefix `amq.`, which no client can declare again.
const CLIENT_MADE_PREFIX: &str = "cony.gen-";

/// The number of hexadecimal digits after the prefix.
const DIGITS: usize = 32;

/// Returns a name for a queue, made from random bits.
pub(crate) fn client_made_name(bits: u128) -> ShortString {
    format!("{CLIENT_MADE_PREFIX}{bits:0DIGITS$x}").into()
}

/// Returns whether cony has made this name.
pub(crate) fn is_client_made(name: &str) -> bool {
    let digits = name.strip_prefix(CLIENT_MADE_PREFIX);
    digits.is_some_and(|digits| {
        digits.len() == DIGITS
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The queues whose name had to be replaced, because the broker did not release it.
#[derive(Debug, Default)]
pub(super) struct Replacements {
    /// The present name by the name that the program knows.
    present: HashMap<ShortString, ShortString>,
    /// The reverse.
    known: HashMap<ShortString, ShortString>,
}

impl Replacements {
    /// Returns the present name of a queue, if it was replaced.
    pub(super) fn present_name(&self, known: &ShortString) -> Option<&ShortString> {
        self.present.get(known)
    }

    /// Notes that `new` replaces `old`, which may be a replacement itself.
    pub(super) fn insert(&mut self, old: &ShortString, new: &ShortString) {
        let known = self.known.remove(old).unwrap_or_else(|| old.clone());
        self.known.insert(new.clone(), known.clone());
        self.present.insert(known, new.clone());
    }

    /// Notes that the queue with this present name is gone.
    pub(super) fn remove(&mut self, present: &ShortString) {
        if let Some(known) = self.known.remove(present) {
            self.present.remove(&known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_made_name_is_recognised_and_no_other_name_is() {
        let name = client_made_name(1);
        assert_eq!(name, "cony.gen-00000000000000000000000000000001");
        assert!(is_client_made(&name));
        assert!(is_client_made(&client_made_name(u128::MAX)));
        let with_letter = format!("cony.gen-{}", "G".repeat(DIGITS));
        let too_long = format!("{name}0");
        for other in ["", "cony.gen-", "cony.gen-1", &with_letter, &too_long] {
            assert!(!is_client_made(other), "{other}");
        }
    }

    #[test]
    fn a_name_that_is_replaced_twice_is_known_by_its_first_name() {
        let [first, second, third] = ["a", "b", "c"].map(ShortString::from);
        let mut replacements = Replacements::default();
        replacements.insert(&first, &second);
        replacements.insert(&second, &third);
        assert_eq!(replacements.present_name(&first), Some(&third));
        assert_eq!(replacements.present_name(&second), None);
        replacements.remove(&third);
        assert_eq!(replacements.present_name(&first), None);
        assert!(replacements.known.is_empty());
    }
}
