//! The position of a consumer in a stream, at which it goes on after a loss of the connection.

use parking_lot::Mutex;

use crate::protocol::content::stream_offset;

/// The last message of a stream that the program has taken. An inbox notes each one.
///
/// The message is noted with its encoded properties, because to decode their headers for each
/// message would cost more than the rest of the taking. Only a loss needs the offset in them.
#[derive(Debug, Default)]
pub(crate) struct StreamPosition(Mutex<Option<Mark>>);

#[derive(Debug)]
struct Mark {
    /// The encoded properties of the message.
    properties: Vec<u8>,
    /// Whether the program has taken the message. Otherwise it is the first one that has arrived.
    is_taken: bool,
}

impl StreamPosition {
    /// Notes a message that has arrived. Only the first one counts.
    pub(crate) fn note_arrived(&self, properties: &[u8]) {
        self.0.lock().get_or_insert_with(|| Mark {
            properties: properties.to_vec(),
            is_taken: false,
        });
    }

    /// Notes a message that the program takes.
    pub(crate) fn note_taken(&self, properties: &[u8]) {
        let mut mark = self.0.lock();
        let mark = mark.get_or_insert_with(|| Mark {
            properties: Vec::new(),
            is_taken: true,
        });
        mark.is_taken = true;
        mark.properties.clear();
        mark.properties.extend_from_slice(properties);
    }

    /// Returns the offset of the first message that the program has not taken. `None`: no message
    /// with an offset has arrived.
    pub(crate) fn next(&self) -> Option<u64> {
        let mark = self.0.lock();
        let mark = mark.as_ref()?;
        let offset = stream_offset(&mark.properties)?;
        Some(match mark.is_taken {
            true => offset.saturating_add(1),
            false => offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::properties::BasicProperties;
    use crate::protocol::properties::tests::bytes as encoded;

    fn of_stream(offset: i64) -> Vec<u8> {
        encoded(&BasicProperties::new().headers([("x-stream-offset", offset)]))
    }

    #[test]
    fn the_first_arrived_message_counts_until_one_is_taken() {
        let position = StreamPosition::default();
        assert_eq!(position.next(), None);
        for offset in [7, 9] {
            position.note_arrived(&of_stream(offset));
            assert_eq!(position.next(), Some(7));
        }
        for offset in [7, 8] {
            position.note_taken(&of_stream(offset));
            position.note_arrived(&of_stream(20));
            assert_eq!(position.next(), u64::try_from(offset + 1).ok());
        }
    }

    #[test]
    fn a_message_without_an_offset_leads_to_none() {
        let other = BasicProperties::new().headers([("x-stream-offset", "a text")]);
        for properties in [Vec::new(), encoded(&other), of_stream(-1), vec![0xff; 9]] {
            let position = StreamPosition::default();
            position.note_arrived(&properties);
            assert_eq!(position.next(), None);
            position.note_taken(&properties);
            assert_eq!(position.next(), None);
        }
    }
}
