//! The delivery tags of a channel over all connections.

/// Converts delivery tags. The tag of the program is the one on the wire plus a base, which grows
/// when the connection is lost; see [`settlements`](super::super::settlements).
#[derive(Debug, Default)]
pub(super) struct DeliveryTags {
    base: u64,
    /// The highest tag so far, as the program knows it.
    last: u64,
}

impl DeliveryTags {
    /// Returns the tag of a delivery that has arrived, as the program knows it.
    // Inlined, because it runs for each delivery.
    #[inline]
    pub(super) fn receive(&mut self, wire_tag: u64) -> u64 {
        // A sum beyond the range is below the base, and so belongs to a stale delivery.
        let tag = self.base.wrapping_add(wire_tag);
        self.last = self.last.max(tag);
        tag
    }

    /// Returns the tag on the wire; `None` for a delivery of a former connection.
    pub(super) fn on_wire(&self, tag: u64) -> Option<u64> {
        tag.checked_sub(self.base).filter(|wire_tag| *wire_tag > 0)
    }

    /// Makes all deliveries so far stale. Returns the new base.
    pub(super) fn detach(&mut self) -> u64 {
        self.base = self.last;
        self.base
    }
}
