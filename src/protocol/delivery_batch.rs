//! Consecutive deliveries to one consumer, packed into one buffer.
//!
//! A batch stores the common parts of its deliveries once, and their messages behind each other. So
//! the IO thread only appends the bytes of a message, and a whole batch needs a handful of
//! allocations. The thread that takes a delivery unpacks it.
//!
//! A body that the program keeps also keeps the buffer of its batch: at most sixteen times its own
//! size and two KiB, and never a whole read buffer. A large message has a buffer of its own.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::buffers::{Buffers, SHARED_BUFFER_BYTES_MIN, SHARED_BUFFER_MESSAGES};
use super::content::{Content, DeliveredContent, Parts, unpack};
use super::last_names::{LastNames, Origin};
use super::methods::basic;
use super::read_room::MESSAGE_OVERHEAD_BYTES;
use super::wire::ShortString;

/// The largest message that shares a buffer with others, in bytes.
const SHARED_MESSAGE_BYTES_MAX: usize = 2 * 1024;

/// Deliveries to one consumer with successive delivery tags.
#[derive(Debug)]
pub(crate) struct Batch {
    consumer_tag: ShortString,
    /// The delivery tag of the first remaining delivery.
    first: u64,
    origin: Origin,
    /// Changes of the origin: the delivery tag of the first delivery that has it, and the origin.
    origins: VecDeque<(u64, Origin)>,
    /// The size of all origins, used ones included, in bytes.
    origins_size: usize,
    /// The number of remaining deliveries.
    count: usize,
    /// The extent of a message that has a buffer of its own. In a shared buffer, each message
    /// follows its extent.
    extent: Option<Extent>,
    bytes: Bytes,
    /// The size of the buffer that each part of `bytes` keeps.
    held: usize,
}

/// The lengths of a message in the buffer: first the properties, then the body.
#[derive(Debug)]
struct Extent {
    redelivered: bool,
    properties: usize,
    body: usize,
}

/// The cost of a message in a shared buffer, beside its bytes.
const BATCHED_OVERHEAD_BYTES: usize = 8;

/// The encoded size of an extent. Two octets are enough for each length, since only messages up to
/// [`SHARED_MESSAGE_BYTES_MAX`] share a buffer.
const EXTENT_BYTES: usize = 5;

impl Extent {
    fn size(&self) -> usize {
        self.properties + self.body
    }

    fn write(&self, chunk: &mut Vec<u8>) {
        let [.., p1, p0] = self.properties.to_be_bytes();
        let [.., b1, b0] = self.body.to_be_bytes();
        chunk.extend_from_slice(&[self.redelivered.into(), p1, p0, b1, b0]);
    }

    fn read(bytes: &mut Bytes) -> Option<Self> {
        let extent = Self::decode(bytes.first_chunk()?);
        bytes.advance(EXTENT_BYTES);
        Some(extent)
    }

    fn decode(&[redelivered, p1, p0, b1, b0]: &[u8; EXTENT_BYTES]) -> Self {
        Self {
            redelivered: redelivered != 0,
            properties: usize::from(u16::from_be_bytes([p1, p0])),
            body: usize::from(u16::from_be_bytes([b1, b0])),
        }
    }
}

impl Batch {
    fn new(first: u64, names: &LastNames) -> Self {
        Self {
            consumer_tag: names.consumer_tag().clone(),
            first,
            origin: names.origin().clone(),
            origins: VecDeque::new(),
            origins_size: names.origin().size(),
            count: 0,
            extent: None,
            bytes: Bytes::new(),
            held: 0,
        }
    }

    fn set_bytes(&mut self, bytes: Bytes, held: usize) {
        self.held = held;
        self.bytes = bytes;
    }

    /// Returns the number of remaining deliveries.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the size of the remaining bodies and properties, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self.extent {
            Some(_) => self.bytes.len(),
            None => self.bytes.len() - self.count * EXTENT_BYTES,
        }
    }

    /// Returns the cost of the remaining deliveries in the read budget.
    pub(crate) fn cost(&self) -> usize {
        MESSAGE_OVERHEAD_BYTES
            + self.origins_size
            + self.size()
            + self.count * BATCHED_OVERHEAD_BYTES
    }

    /// Returns the part of the cost that ends with `message`, which was just taken. The last
    /// message also ends the cost of the batch itself.
    pub(crate) fn cost_of(&self, message: &PackedDelivery) -> usize {
        let shared = match self.is_empty() {
            true => MESSAGE_OVERHEAD_BYTES + self.origins_size,
            false => 0,
        };
        message.size() + BATCHED_OVERHEAD_BYTES + shared
    }

    pub(crate) fn consumer_tag(&self) -> &ShortString {
        &self.consumer_tag
    }

    /// Returns the delivery tag of the first remaining delivery.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the delivery tag of the last delivery.
    pub(crate) fn last(&self) -> u64 {
        self.first + (self.count as u64).saturating_sub(1)
    }

    /// Returns the encoded properties of the first remaining delivery.
    pub(crate) fn first_properties(&self) -> Option<&[u8]> {
        if let Some(extent) = &self.extent {
            return self.bytes.get(..extent.properties);
        }
        let (extent, rest) = self.bytes.split_first_chunk()?;
        rest.get(..Extent::decode(extent).properties)
    }

    /// Removes and returns the first remaining delivery.
    pub(crate) fn pop(&mut self) -> Option<PackedDelivery> {
        let extent = match self.extent.take() {
            Some(extent) => extent,
            None => Extent::read(&mut self.bytes)?,
        };
        self.count -= 1;
        let delivery_tag = self.first;
        self.first = delivery_tag.saturating_add(1);
        let is_due = |(from, _): &mut (u64, Origin)| *from <= delivery_tag;
        while let Some((_, origin)) = pop_front_if(&mut self.origins, is_due) {
            self.origin = origin;
        }
        let bytes = match self.is_empty() {
            true => std::mem::take(&mut self.bytes),
            false => self.bytes.split_to(extent.size()),
        };
        Some(PackedDelivery {
            deliver: basic::Deliver {
                consumer_tag: self.consumer_tag.clone(),
                delivery_tag,
                redelivered: extent.redelivered,
                exchange: self.origin.exchange.clone(),
                routing_key: self.origin.routing_key.clone(),
            },
            properties: extent.properties,
            bytes,
            held: self.held,
        })
    }
}

/// Does the same as `VecDeque::pop_front_if`, which needs a newer Rust than 1.85.
fn pop_front_if<T>(queue: &mut VecDeque<T>, so: impl FnOnce(&mut T) -> bool) -> Option<T> {
    queue
        .front_mut()
        .is_some_and(so)
        .then(|| queue.pop_front())?
}

/// A delivery taken from a batch. Its properties are still encoded.
#[derive(Debug)]
pub(crate) struct PackedDelivery {
    deliver: basic::Deliver,
    properties: usize,
    bytes: Bytes,
    /// The size of the buffer that `bytes` keeps.
    held: usize,
}

impl PackedDelivery {
    /// Returns the size of body and properties, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the encoded properties.
    pub(crate) fn properties(&self) -> &[u8] {
        self.bytes.get(..self.properties).unwrap_or_default()
    }

    pub(crate) fn unpack(self) -> DeliveredContent {
        let unpacked = unpack(self.bytes, self.properties, self.held);
        Content::new(self.deliver, unpacked)
    }
}

/// Writes the deliveries of a connection into batches.
#[derive(Debug, Default)]
pub(crate) struct BatchWriter<M> {
    /// The channel and names of the last delivery.
    last: Option<Last>,
    /// Whether the last batch may grow. Its bytes are then still in `chunk`.
    is_open: bool,
    /// The bytes of the last batch, with free capacity behind them.
    chunk: Vec<u8>,
    memory: M,
}

/// A channel, and the versions of its last names.
#[derive(Debug)]
struct Last {
    channel: u16,
    tag: u64,
    origin: u64,
}

impl<M: Buffers> BatchWriter<M> {
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns whether a delivery goes to the consumer of the last batch in `batches` and has the
    /// next delivery tag there. The last batch in `batches` must be the last one that was written.
    // Inlined, because it runs for each delivery.
    #[inline]
    pub(crate) fn continues(
        &self,
        batches: &VecDeque<Batch>,
        channel: u16,
        delivery_tag: u64,
        names: &LastNames,
    ) -> bool {
        let is_of_same = |last: &Last| last.channel == channel && last.tag == names.tag_version();
        self.last.as_ref().is_some_and(is_of_same)
            && batches
                .back()
                .is_some_and(|batch| batch.last().checked_add(1) == Some(delivery_tag))
    }

    /// Adds a delivery to the last batch in `batches`, or as a new batch, and returns its cost. The
    /// open batch must be sealed first if it is not in `batches`. If `batches` is not empty, the
    /// delivery must [continue](Self::continues) it.
    pub(crate) fn add(
        &mut self,
        batches: &mut VecDeque<Batch>,
        channel: u16,
        delivery: Delivery<'_>,
    ) -> usize {
        let Delivery { names, parts, .. } = delivery;
        let size = parts.len();
        let extent = Extent {
            redelivered: delivery.redelivered,
            properties: parts.properties_len(),
            body: size - parts.properties_len(),
        };
        let room = self.chunk.capacity() - self.chunk.len();
        let grows = self.is_open && size <= SHARED_MESSAGE_BYTES_MAX && room >= size + EXTENT_BYTES;
        let mut cost = size + BATCHED_OVERHEAD_BYTES;
        if !grows {
            self.seal(batches);
            batches.push_back(Batch::new(delivery.tag, names));
            cost += MESSAGE_OVERHEAD_BYTES + names.origin().size();
            self.last = Some(Last {
                channel,
                tag: names.tag_version(),
                origin: names.origin_version(),
            });
        }
        let (Some(batch), Some(last)) = (batches.back_mut(), &mut self.last) else {
            return cost;
        };
        if last.origin != names.origin_version() {
            last.origin = names.origin_version();
            cost += names.origin().size();
            batch.origins_size += names.origin().size();
            batch
                .origins
                .push_back((delivery.tag, names.origin().clone()));
        }
        batch.count += 1;
        if size > SHARED_MESSAGE_BYTES_MAX {
            batch.extent = Some(extent);
            batch.set_bytes(parts.join(&self.memory), size);
            return cost;
        }
        if !grows {
            self.make_room(size + EXTENT_BYTES);
            self.is_open = true;
        }
        extent.write(&mut self.chunk);
        parts.put_into(&mut self.chunk);
        cost
    }

    /// Completes the last batch in `batches` with the bytes of `chunk`.
    pub(crate) fn seal(&mut self, batches: &mut VecDeque<Batch>) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        // A large buffer with few bytes would use more memory than the read budget counts.
        let (size, room) = (self.chunk.len(), self.chunk.capacity());
        let (bytes, held) = if size < room / 2 {
            let bytes = Bytes::copy_from_slice(&self.chunk);
            self.chunk.clear();
            (bytes, size)
        } else {
            (self.memory.share(std::mem::take(&mut self.chunk)), room)
        };
        if let Some(batch) = batches.back_mut() {
            batch.set_bytes(bytes, held);
        }
    }

    /// Provides a buffer for messages of about `size` bytes. It is small enough that none of them
    /// keeps much more memory than its share.
    fn make_room(&mut self, size: usize) {
        let share = (size * SHARED_BUFFER_MESSAGES).max(SHARED_BUFFER_BYTES_MIN);
        let room = self.chunk.capacity();
        if room < size || room > share {
            // Rounded down to a power of two, so that a returned buffer mostly fits again.
            let wanted = share.checked_ilog2().map_or(share, |power| 1 << power);
            self.chunk = self.memory.take(wanted);
        }
    }

    /// Frees the buffers that are kept for reuse.
    pub(crate) fn release_memory(&mut self) {
        self.memory.release();
    }
}

/// A delivery whose content is complete.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) tag: u64,
    pub(crate) redelivered: bool,
    pub(crate) names: &'a LastNames,
    pub(crate) parts: Parts<'a>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::content::stream_offset;
    use super::super::properties::BasicProperties;
    use super::super::properties::tests::bytes as encoded;
    use super::*;

    /// Packs deliveries of these sizes and routing keys to one consumer.
    pub(crate) fn packed(deliveries: &[(usize, &str)]) -> VecDeque<Batch> {
        let (mut writer, mut batches) = (BatchWriter::<()>::default(), VecDeque::new());
        let mut names = LastNames::default();
        for (tag, (size, routing_key)) in (1u64..).zip(deliveries) {
            names.set("tag", "", routing_key);
            let body = body(tag, *size);
            let delivery = Delivery {
                tag,
                redelivered: tag % 2 == 0,
                names: &names,
                parts: Parts::Apart {
                    properties: &[],
                    body: &body,
                },
            };
            assert_eq!(writer.continues(&batches, 1, tag, &names), tag > 1);
            writer.add(&mut batches, 1, delivery);
        }
        writer.seal(&mut batches);
        batches
    }

    /// Packs messages of a stream with these offsets. Each third one has a buffer of its own.
    pub(crate) fn of_stream(offsets: &[i64]) -> VecDeque<Batch> {
        let (mut writer, mut batches) = (BatchWriter::<()>::default(), VecDeque::new());
        let mut names = LastNames::default();
        names.set("tag", "", "key");
        for (tag, offset) in (1u64..).zip(offsets) {
            let headers = BasicProperties::new().headers([("x-stream-offset", *offset)]);
            let properties = encoded(&headers);
            let body = body(tag, if tag % 3 == 0 { 5000 } else { 10 });
            let delivery = Delivery {
                tag,
                redelivered: false,
                names: &names,
                parts: Parts::Apart {
                    properties: &properties,
                    body: &body,
                },
            };
            writer.add(&mut batches, 1, delivery);
        }
        writer.seal(&mut batches);
        batches
    }

    #[test]
    fn the_properties_of_a_message_are_the_same_before_and_after_it_is_taken() {
        let offsets = [1, 2, 3, 4, 5, 6];
        let mut expected = 1..=6;
        for mut batch in of_stream(&offsets) {
            while !batch.is_empty() {
                let first = batch.first_properties().unwrap().to_vec();
                assert_eq!(stream_offset(&first), expected.next());
                assert_eq!(batch.pop().unwrap().properties(), first);
            }
            assert_eq!(batch.first_properties(), None);
        }
        assert_eq!(expected.next(), None);
    }

    fn body(tag: u64, size: usize) -> Vec<u8> {
        vec![u8::try_from(tag % 251).unwrap(); size]
    }

    fn messages(batches: VecDeque<Batch>) -> Vec<DeliveredContent> {
        let pop =
            |mut batch: Batch| std::iter::from_fn(move || batch.pop()).map(PackedDelivery::unpack);
        batches.into_iter().flat_map(pop).collect()
    }

    #[test]
    fn each_message_of_a_batch_is_unpacked_unchanged() {
        let sizes = [0, 1, 16, 16, 1024, 3, 2048, 2049, 16, 70_000, 900, 0, 900];
        let keys = [
            "a", "a", "b", "c", "c", "a", "a", "a", "b", "b", "c", "a", "a",
        ];
        let deliveries: Vec<_> = sizes.into_iter().zip(keys).collect();
        let messages = messages(packed(&deliveries));
        assert_eq!(messages.len(), deliveries.len());
        for ((tag, message), (size, key)) in (1u64..).zip(&messages).zip(deliveries) {
            let deliver = &message.method;
            assert_eq!(
                (deliver.delivery_tag, deliver.redelivered),
                (tag, tag % 2 == 0)
            );
            assert_eq!(deliver.routing_key, key);
            assert_eq!(message.body, body(tag, size));
        }
    }

    #[test]
    fn messages_of_one_size_share_a_buffer_up_to_its_limit() {
        for (size, expected) in [(16, 48), (64, 14), (1024, 15), (2048, 15), (2049, 1)] {
            let batches = packed(&vec![(size, "key"); 1000]);
            for batch in batches.iter().rev().skip(1) {
                assert_eq!(batch.len(), expected, "{size}");
            }
            assert!(
                batches
                    .iter()
                    .all(|batch| batch.size() == batch.len() * size)
            );
        }
    }

    #[test]
    fn a_small_message_does_not_use_a_buffer_for_large_ones() {
        let mut writer = BatchWriter::<()>::default();
        writer.make_room(2048);
        writer.make_room(16);
        assert!(writer.chunk.capacity() <= SHARED_BUFFER_BYTES_MIN);
    }

    #[test]
    fn a_small_message_between_large_ones_does_not_keep_their_buffer() {
        let mut batches = packed(&[(2048, "key"), (16, "key"), (2048, "key")]);
        let batch = batches.front_mut().unwrap();
        let place = batch.bytes.as_ptr_range();
        let [large, small, _] = [(); 3].map(|()| batch.pop().unwrap().unpack().body);
        assert!(place.contains(&large.as_ptr()));
        assert!(!place.contains(&small.as_ptr()));
        assert_eq!(small, body(2, 16));
    }

    #[test]
    fn another_consumer_or_a_gap_in_the_delivery_tags_starts_a_new_batch() {
        let (mut writer, mut batches) = (BatchWriter::<()>::default(), VecDeque::new());
        let mut names = LastNames::default();
        names.set("tag", "", "key");
        let delivery = |names| Delivery {
            tag: 1,
            redelivered: false,
            names,
            parts: Parts::Apart {
                properties: &[],
                body: b"body",
            },
        };
        writer.add(&mut batches, 1, delivery(&names));
        assert!(writer.continues(&batches, 1, 2, &names));
        assert!(!writer.continues(&batches, 1, 3, &names), "a gap");
        assert!(!writer.continues(&batches, 2, 2, &names), "another channel");
        assert!(!writer.continues(&VecDeque::new(), 1, 2, &names), "taken");
        names.set("other", "", "key");
        assert!(
            !writer.continues(&batches, 1, 2, &names),
            "another consumer"
        );
    }

    #[test]
    fn the_cost_of_a_batch_is_the_sum_of_the_costs_of_its_messages() {
        let (long, other) = ("k".repeat(255), "o".repeat(255));
        for (count, size, keys) in [
            (1, 0, ["", ""]),
            (1000, 16, ["key", "key"]),
            (1000, 0, [&*long, &*other]),
            (10, 100_000, ["key", "other"]),
        ] {
            let deliveries: Vec<_> = (0..count).map(|index| (size, keys[index % 2])).collect();
            let mut batches = packed(&deliveries);
            let cost: usize = batches.iter().map(Batch::cost).sum();
            let names = if keys[0] == keys[1] { 0 } else { keys[0].len() };
            assert!(
                cost >= MESSAGE_OVERHEAD_BYTES + count * (size + names),
                "{cost}"
            );
            let mut left = cost;
            for batch in &mut batches {
                while let Some(message) = batch.pop() {
                    left -= batch.cost_of(&message);
                }
            }
            assert_eq!(left, 0, "{count} of {size}");
        }
    }
}
