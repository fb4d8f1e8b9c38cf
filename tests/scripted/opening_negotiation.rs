//! Openings that succeed: the negotiated limits, and the bytes of the handshake in any pieces.

use std::time::Duration;

use cony::BlockingConnection;

use crate::support::peer::methods::*;
use crate::support::peer::{Tune, Wire, args, close, heartbeat, method, play, start};

#[test]
fn a_handshake_in_single_bytes_succeeds() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            let drip = |wire: &mut Wire, bytes: Vec<u8>| {
                for byte in bytes {
                    wire.raw(&[byte]);
                }
            };
            drip(&mut wire, method(0, CONNECTION_START, start(&[], "PLAIN")));
            wire.expect(0, CONNECTION_START_OK);
            let tune = args().u16(10).u32(8192).u16(0);
            drip(&mut wire, method(0, CONNECTION_TUNE, tune));
            wire.expect(0, CONNECTION_TUNE_OK);
            wire.expect(0, CONNECTION_OPEN);
            drip(&mut wire, method(0, CONNECTION_OPEN_OK, args().short("")));
            wire.expect(1, CHANNEL_OPEN);
            drip(&mut wire, method(1, CHANNEL_OPEN_OK, args().long("")));
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            assert_eq!(connection.channel_max(), 10);
            assert_eq!(connection.frame_max(), 8192);
            connection.channel().unwrap();
        },
    );
}

#[test]
fn large_server_properties_are_accepted() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            let fat = "x".repeat(100_000);
            let properties = args().short("product").u8(b'S').long("Scripted");
            let properties = properties.short("fat").u8(b'S').long(fat).bytes();
            wire.send(0, CONNECTION_START, start(&properties, "PLAIN"));
            wire.expect(0, CONNECTION_START_OK);
            wire.tune(Tune::default());
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let properties = connection.server_properties();
            let product = properties.get("product").and_then(|value| value.as_str());
            assert_eq!(product, Some("Scripted"));
            let fat = properties.get("fat").and_then(|value| value.as_str());
            assert_eq!(fat.map(str::len), Some(100_000));
        },
    );
}

#[test]
fn the_smaller_value_of_each_limit_is_negotiated() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            let proposed = Tune {
                channel_max: 100,
                frame_max: 50_000,
                heartbeat: 600,
            };
            let (agreed, _) = wire.tune(proposed);
            assert_eq!(agreed.channel_max, 100);
            assert_eq!(agreed.frame_max, 20_000);
            assert_eq!(agreed.heartbeat, 60);
            wire.send(0, CONNECTION_OPEN_OK, args().short(""));
            wire.finish();
        },
        |parameters| {
            let parameters = parameters
                .channel_max(200)
                .frame_max(20_000)
                .heartbeat(Duration::from_secs(60));
            let connection = BlockingConnection::open(parameters).unwrap();
            assert_eq!(connection.heartbeat(), Duration::from_secs(60));
        },
    );
}

#[test]
fn a_heartbeat_before_open_ok_delays_nothing() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            wire.tune(Tune::default());
            // One segment, so that the client reads both frames at once.
            let mut bytes = heartbeat();
            bytes.extend(method(0, CONNECTION_OPEN_OK, args().short("")));
            wire.raw(&bytes);
            wire.finish();
        },
        |parameters| {
            let parameters = parameters.handshake_timeout(Duration::from_secs(5));
            BlockingConnection::open(parameters).unwrap();
        },
    );
}

#[test]
fn a_close_in_the_same_segment_as_open_ok_is_read() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            wire.tune(Tune::default());
            let mut bytes = method(0, CONNECTION_OPEN_OK, args().short(""));
            let text = "CONNECTION_FORCED - too late";
            bytes.extend(method(0, CONNECTION_CLOSE, close(320, text, (0, 0))));
            wire.raw(&bytes);
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let error = connection.wait_closed();
            assert_eq!(error.reply_code(), Some(320));
        },
    );
}
