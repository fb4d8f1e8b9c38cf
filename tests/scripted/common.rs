//! Helpers of several scripted tests.

use std::sync::mpsc;
use std::thread;

use cony::{BlockingChannel, BlockingConnection, Error, basic};

use crate::support::peer::{STEP_TIMEOUT, args};

/// A consumer of "q" without acknowledgements.
pub(crate) fn no_ack() -> basic::Consume {
    basic::Consume::new("q").no_ack(true)
}

/// Waits until every frame that the peer has sent before its next `queue.declare-ok` was read.
pub(crate) fn await_earlier_frames(channel: &BlockingChannel) {
    channel.queue_declare("q").unwrap();
}

/// Opens the channel with this number as soon as the number is free.
pub(crate) fn open_when_free(connection: &BlockingConnection, number: u16) -> BlockingChannel {
    loop {
        match connection.channel_with_number(number) {
            Ok(channel) => return channel,
            Err(Error::ChannelNumberInUse(_)) => thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Dispatches until a callback has sent something to `noted`, and returns that.
pub(crate) fn dispatch_until<T>(connection: &BlockingConnection, noted: &mpsc::Receiver<T>) -> T {
    loop {
        connection.process_data_events(STEP_TIMEOUT).unwrap();
        if let Ok(noted) = noted.try_recv() {
            return noted;
        }
    }
}

/// The encoded pairs of a table that has `depth` tables nested in each other.
pub(crate) fn nested_tables(depth: usize) -> Vec<u8> {
    (0..depth).fold(Vec::new(), |inner, _| {
        args().short("n").u8(b'F').long(inner).bytes()
    })
}

/// The encoded pairs of a table that has one array of `count` values.
pub(crate) fn many_values(count: usize) -> Vec<u8> {
    let values = vec![b'V'; count];
    args().short("a").u8(b'A').long(values).bytes()
}
