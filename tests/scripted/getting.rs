//! `basic_get`.

use std::time::Duration;

use cony::{Error, basic};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{SINGLE, args, get_ok, header, signal, with_channel, with_channel_and};

#[test]
fn basic_get_returns_the_fields_of_get_ok() {
    with_channel(
        |wire| {
            wire.expect(1, BASIC_GET);
            wire.send(1, BASIC_GET_EMPTY, args().short(""));
            wire.expect(1, BASIC_GET);
            let start = args().u64(7).u8(1).short("logs").short("error");
            wire.send_content(1, BASIC_GET_OK, start.u32(41), "body");
            assert_eq!(wire.expect_settled(1, BASIC_ACK), (7, SINGLE));
        },
        |channel| {
            assert!(channel.basic_get("q").unwrap().is_none());
            let got = channel.basic_get("q").unwrap().unwrap();
            assert_eq!((got.delivery_tag, got.redelivered), (7, true));
            assert_eq!((&*got.exchange, &*got.routing_key), ("logs", "error"));
            assert_eq!(
                (got.message_count, got.consumer_tag.as_deref()),
                (Some(41), None)
            );
            got.ack().unwrap();
        },
    );
}

#[test]
fn a_late_no_ack_get_ok_cannot_be_acknowledged() {
    let (given_up, is_late) = signal();
    with_channel_and(
        |parameters| parameters.rpc_timeout(Duration::from_millis(200)),
        move |wire| {
            wire.expect(1, BASIC_GET);
            is_late.wait();
            wire.send(1, BASIC_GET_OK, get_ok(1));
            wire.raw(&header(1, 0));
            wire.accept_declare(1);
            wire.serve();
        },
        move |channel| {
            let get = basic::Get::new("q").no_ack(true);
            let error = channel.basic_get(get).unwrap_err();
            assert!(error.is_timeout(), "{error}");
            given_up.send(()).unwrap();
            while let Err(error) = channel.queue_declare("q") {
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            }
            expect_error!(channel.basic_ack(1), Error::AlreadySettled(1));
            channel.connection().close().unwrap();
        },
    );
}
