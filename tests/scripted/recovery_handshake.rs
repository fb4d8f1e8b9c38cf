//! Attempts of recovery that end after any byte of the handshake.

use crate::recovery::{accept, open};
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, Method, TEST_TIMEOUT, Tune, args, method, play, start};

/// Returns the steps of a broker in the handshake: the methods that it waits for, and its reply.
fn steps() -> [(&'static [Method], Vec<u8>); 3] {
    let tune = Tune::default().arguments();
    let open_ok = method(0, CONNECTION_OPEN_OK, args().short(""));
    [
        (&[], method(0, CONNECTION_START, start(&[], "PLAIN"))),
        (&[CONNECTION_START_OK], method(0, CONNECTION_TUNE, tune)),
        (&[CONNECTION_TUNE_OK, CONNECTION_OPEN], open_ok),
    ]
}

/// Accepts a connection, and ends it when this number of bytes is sent.
fn end_after(listener: &Listener, bytes: usize) {
    let mut wire = listener.accept();
    wire.expect_protocol_header();
    let mut left = bytes;
    for (awaited, reply) in steps() {
        for id in awaited {
            wire.expect(0, *id);
        }
        let part = &reply[..left.min(reply.len())];
        wire.raw(part);
        left -= part.len();
        if left == 0 {
            return;
        }
    }
}

#[test]
fn an_attempt_that_ends_after_any_byte_of_the_handshake_is_followed_by_the_next_one() {
    let total: usize = steps().iter().map(|(_, reply)| reply.len()).sum();
    play(
        move |listener| {
            drop(accept(listener));
            // After the last byte the connection is open, and lost again.
            for bytes in 0..=total {
                end_after(listener, bytes);
            }
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.finish();
        },
        move |parameters| {
            let connection = open(parameters);
            crate::support::until("all attempts", || {
                connection.stats().recovery_attempts == total as u64 + 2
            });
            connection.wait_recovered(TEST_TIMEOUT).unwrap();
            let stats = connection.stats();
            assert_eq!(stats.recovery_attempts, total as u64 + 2);
            assert_eq!(stats.epoch, 3, "the last cut was behind the handshake");
            connection.channel().unwrap();
            connection.close().unwrap();
        },
    );
}
