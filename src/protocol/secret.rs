//! Secret bytes, and their encoding without copies that stay in memory.

use std::borrow::Cow;
use std::fmt;

use zeroize::Zeroizing;

use super::errors::{DecodeError, EncodeError};
use super::frame::encode_method;
use super::methods::Method;
use super::wire::{Field, Reader, Writer};

/// A password, a token, or the answer of a [`Mechanism`](crate::Mechanism). The bytes are wiped
/// from memory when the secret is dropped, and `Debug` does not show them.
///
/// A `String` or `Vec<u8>` is moved into the secret, so no copy stays in memory. Borrowed bytes are
/// copied, and you must wipe the original yourself.
///
/// ```
/// use cony::Secret;
///
/// let secret = Secret::from("hush".to_owned());
/// assert_eq!(secret.as_bytes(), b"hush");
/// assert_eq!(format!("{secret:?}"), "***");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns an empty secret with this capacity, in bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    /// Appends bytes. If the buffer must grow, the old one is wiped.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Self::with_capacity(self.0.len() + bytes.len());
            larger.0.extend_from_slice(&self.0);
            *self = larger;
        }
        self.0.extend_from_slice(bytes);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

macro_rules! secret_from {
    ($($ty:ty, $bytes:ident => $vec:expr;)*) => { $(
        impl From<$ty> for Secret {
            fn from($bytes: $ty) -> Self {
                Self(Zeroizing::new($vec))
            }
        }
    )* };
}

secret_from! {
    &str, text => text.as_bytes().to_vec();
    String, text => text.into_bytes();
    &String, text => text.as_bytes().to_vec();
    Cow<'_, str>, text => text.into_owned().into_bytes();
    &[u8], bytes => bytes.to_vec();
    Vec<u8>, bytes => bytes;
}

impl<const N: usize> From<&[u8; N]> for Secret {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl Field for Secret {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        writer.long_bytes(self.as_bytes())
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.long_bytes().map(Self::from)
    }
}

/// Returns the frame of a method of channel 0 with `secret`, which `fill` adds to `bare`. Its size
/// is measured first, because a buffer that grows would leave copies in memory.
pub(crate) fn encode_secret<M: Clone + Into<Method>>(
    bare: M,
    secret: Secret,
    fill: impl FnOnce(M, Secret) -> M,
    frame_max: usize,
) -> Result<Secret, EncodeError> {
    let mut measured = Vec::new();
    encode_method(&mut measured, 0, &bare.clone().into(), usize::MAX)?;
    let mut frame = Secret::with_capacity(measured.len() + secret.as_bytes().len());
    let method = fill(bare, secret).into();
    encode_method(&mut frame.0, 0, &method, frame_max)?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::super::errors::Flaw;
    use super::super::methods::connection;
    use super::*;

    #[test]
    fn debug_output_contains_no_secret() {
        let secret = Secret::from("QzXvJkWp");
        assert!(!format!("{secret:?}").contains("QzXv"));
        let start_ok = connection::StartOk::default().response(secret.clone());
        assert!(!format!("{start_ok:?}").contains("QzXv"));
        let update = connection::UpdateSecret::default().new_secret(secret);
        assert!(!format!("{:?}", Method::from(update)).contains("QzXv"));
    }

    #[test]
    fn a_string_is_moved_into_a_secret_without_a_copy() {
        let text = String::from("hush");
        let address = text.as_ptr();
        assert_eq!(Secret::from(text).as_bytes().as_ptr(), address);
    }

    #[test]
    fn the_buffer_of_a_secret_frame_never_grows() {
        for length in [0, 1, 1000, 8000] {
            let bare = connection::StartOk::default().mechanism("PLAIN");
            let secret = Secret::from(vec![7; length]);
            let fill = connection::StartOk::response;
            let frame = encode_secret(bare, secret, fill, 1 << 20).unwrap();
            assert_eq!(frame.0.capacity(), frame.0.len(), "{length}");
        }
    }

    #[test]
    fn a_secret_larger_than_a_frame_is_an_error() {
        let bare = connection::UpdateSecret::default();
        let fill = connection::UpdateSecret::new_secret;
        let error = encode_secret(bare, vec![7; 5000].into(), fill, 4096).unwrap_err();
        assert_eq!(error.what, "connection.update-secret (frame)");
        assert!(matches!(error.flaw, Flaw::TooLong { limit: 4096, .. }));
    }
}
