//! A string that is stored in place if it is short, and shared otherwise.
//!
//! A delivery has three names: consumer tag, exchange and routing key. The IO thread reads them and
//! a thread of the program drops them. Shared strings would need six updates of reference counts
//! that move between two processors. Most names are short enough to be copied instead.

use std::sync::Arc;

/// The longest text that is stored in place. With its length and the tag of the variant it takes
/// three words, one more than a shared string.
const INLINE_BYTES_MAX: usize = 22;

#[derive(Clone)]
pub(crate) enum SmallStr {
    Inline {
        length: u8,
        bytes: [u8; INLINE_BYTES_MAX],
    },
    Shared(Arc<str>),
}

impl SmallStr {
    pub(crate) const EMPTY: Self = Self::Inline {
        length: 0,
        bytes: [0; INLINE_BYTES_MAX],
    };

    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES_MAX];
        match (u8::try_from(text.len()), bytes.get_mut(..text.len())) {
            (Ok(length), Some(place)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Inline { length, bytes }
            }
            _ => Self::Shared(text.into()),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Shared(text) => text.as_bytes(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            // The bytes are valid UTF-8, because they come from a `&str`. Without `unsafe` they
            // must be checked again.
            Self::Inline { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Shared(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_the_text_that_was_put_in_for_every_length() {
        for length in [
            0,
            1,
            INLINE_BYTES_MAX - 1,
            INLINE_BYTES_MAX,
            INLINE_BYTES_MAX + 1,
            255,
            300,
        ] {
            let text = "é".repeat(length / 2) + &"x".repeat(length % 2);
            let string = SmallStr::new(&text);
            assert_eq!(string.as_str(), text);
            assert_eq!(string.clone().as_bytes(), text.as_bytes());
            let is_inline = matches!(string, SmallStr::Inline { .. });
            assert_eq!(is_inline, length <= INLINE_BYTES_MAX);
        }
        assert_eq!(SmallStr::EMPTY.as_str(), "");
    }

    #[test]
    fn its_size_is_three_words() {
        assert_eq!(size_of::<SmallStr>(), 3 * size_of::<usize>());
    }
}
