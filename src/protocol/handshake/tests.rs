use super::super::errors::Flaw;
use super::super::frame::tests::feed;
use super::*;

struct Fixed(&'static str, &'static str);

impl Mechanism for Fixed {
    fn name(&self) -> &str {
        self.0
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
        challenge.is_none().then(|| self.1.into())
    }
}

fn offer() -> Offer {
    Offer {
        client_properties: FieldTable::new(),
        mechanisms: vec![Box::new(Fixed("PLAIN", "\0guest\0guest"))],
        locale: "en_US".into(),
        virtual_host: "/".into(),
        channel_max: 2047,
        frame_max: 131_072,
        heartbeat: Some(60),
    }
}

fn frame(method: impl Into<Method>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_method(&mut out, 0, &method.into(), 1 << 20).unwrap();
    out
}

fn receive(handshake: &mut Handshake, bytes: &[u8]) -> Result<bool, HandshakeFailure> {
    feed(&mut handshake.decoder, bytes);
    handshake.received(0)
}

fn sent(handshake: &mut Handshake) -> Vec<Method> {
    let mut decoder = FrameDecoder::new(1 << 20);
    feed(&mut decoder, handshake.take_output().as_bytes());
    let mut methods = Vec::new();
    while let Some(frame) = decoder.next().unwrap() {
        let Frame::Method {
            channel: 0,
            payload,
        } = frame
        else {
            panic!("{frame:?}");
        };
        methods.push(decode_method(payload).unwrap());
    }
    methods
}

fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> connection::Tune {
    connection::Tune::default()
        .channel_max(channel_max)
        .frame_max(frame_max)
        .heartbeat(heartbeat)
}

/// Returns a handshake that expects tune.
fn to_tune(offer: Offer) -> Handshake {
    let mut handshake = Handshake::new(offer);
    assert_eq!(handshake.take_output().as_bytes(), PROTOCOL_HEADER);
    let start = connection::Start::default().mechanisms("AMQPLAIN PLAIN");
    assert_eq!(receive(&mut handshake, &frame(start)), Ok(false));
    handshake
}

#[test]
fn a_handshake_succeeds() {
    let mut handshake = to_tune(offer());
    assert_eq!(handshake.stage(), Stage::Start);
    let [Method::ConnectionStartOk(start_ok)] = &sent(&mut handshake)[..] else {
        panic!("start-ok is due");
    };
    assert_eq!(start_ok.mechanism, "PLAIN");
    assert_eq!(start_ok.response.as_bytes(), b"\0guest\0guest");
    assert_eq!(
        receive(&mut handshake, &frame(tune(0, 4096, 580))),
        Ok(false)
    );
    assert_eq!(handshake.stage(), Stage::Open);
    assert_eq!(
        sent(&mut handshake),
        [
            Method::from(
                connection::TuneOk::default()
                    .channel_max(2047)
                    .frame_max(4096)
                    .heartbeat(60)
            ),
            connection::Open::new("/").into(),
        ]
    );
    let mut bytes = frame(connection::OpenOk::default());
    bytes.extend(frame(connection::Unblocked::default()));
    assert_eq!(receive(&mut handshake, &bytes), Ok(true));
    let (mut decoder, negotiated) = handshake.finish();
    assert_eq!(negotiated.frame_max, 4096);
    assert!(decoder.next().unwrap().is_some(), "later bytes are kept");
}

#[test]
fn a_handshake_succeeds_byte_by_byte() {
    let mut bytes = frame(connection::Start::default());
    bytes.extend(frame(tune(2047, 131_072, 60)));
    bytes.extend(frame(connection::OpenOk::default()));
    let mut handshake = Handshake::new(offer());
    let (last, rest) = bytes.split_last().unwrap();
    for byte in rest {
        assert_eq!(receive(&mut handshake, &[*byte]), Ok(false));
    }
    assert_eq!(receive(&mut handshake, &[*last]), Ok(true));
}

#[test]
fn zero_means_that_the_other_side_decides() {
    for (ours, theirs, agreed) in [
        ((0, 0), (0, 0), (u16::MAX, 131_072)),
        ((0, 0), (100, 8192), (100, 8192)),
        ((100, 8192), (0, 0), (100, 8192)),
        ((100, 8192), (50, 131_072), (50, 8192)),
    ] {
        let mut handshake = to_tune(Offer {
            channel_max: ours.0,
            frame_max: ours.1,
            ..offer()
        });
        receive(&mut handshake, &frame(tune(theirs.0, theirs.1, 0))).unwrap();
        let negotiated = &handshake.negotiated;
        assert_eq!((negotiated.channel_max, negotiated.frame_max), agreed);
    }
}

#[test]
fn frames_smaller_than_the_smallest_are_refused() {
    for (theirs, agreed) in [(4096, true), (4095, false), (1, false)] {
        let mut handshake = to_tune(offer());
        let outcome = receive(&mut handshake, &frame(tune(0, theirs, 0)));
        assert_eq!(outcome.is_ok(), agreed, "{theirs}");
    }
}

#[test]
fn heartbeats_are_the_smaller_interval_unless_switched_off() {
    for (ours, theirs, agreed) in [
        (None, 60, 0),
        (Some(0), 60, 60),
        (Some(10), 60, 10),
        (Some(60), 10, 10),
        (Some(60), 0, 60),
    ] {
        let mut handshake = to_tune(Offer {
            heartbeat: ours,
            ..offer()
        });
        receive(&mut handshake, &frame(tune(0, 0, theirs))).unwrap();
        assert_eq!(handshake.negotiated.heartbeat, agreed);
    }
}

#[test]
fn a_close_is_answered_and_reported_in_every_state() {
    let close = frame(
        connection::Close::default()
            .reply_code(530)
            .reply_text("NOT_ALLOWED")
            .class_id(10)
            .method_id(40),
    );
    let mut at_header = Handshake::new(offer());
    at_header.take_output();
    let mut at_start = to_tune(offer());
    sent(&mut at_start);
    let mut at_open = to_tune(offer());
    receive(&mut at_open, &frame(tune(0, 0, 0))).unwrap();
    sent(&mut at_open);
    for (mut handshake, stage) in [
        (at_header, Stage::Header),
        (at_start, Stage::Start),
        (at_open, Stage::Open),
    ] {
        let failure = receive(&mut handshake, &close).unwrap_err();
        let HandshakeFailure::Closed(reason) = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(reason.code, ReplyCodeOf::NOT_ALLOWED);
        assert_eq!(reason.method, Some(connection::Open::ID));
        assert_eq!(handshake.stage(), stage);
        assert_eq!(
            sent(&mut handshake),
            [connection::CloseOk::default().into()]
        );
    }
}

use super::super::reply_code::ReplyCode as ReplyCodeOf;

#[test]
fn the_first_bytes_of_another_protocol_are_reported() {
    for bytes in [
        &b"HTTP/1.1 400 Bad Request"[..],
        b"\x15\x03\x01\0\x02\x02\x46",
        b"SSH-2.0",
    ] {
        let failure = receive(&mut Handshake::new(offer()), bytes).unwrap_err();
        let start = bytes.iter().take(16).copied().collect();
        assert_eq!(failure, HandshakeFailure::NotAmqp(start));
    }
    assert_eq!(
        receive(&mut Handshake::new(offer()), b"AMQP\x03\x01\0\0"),
        Err(HandshakeFailure::Version(*b"AMQP\x03\x01\0\0"))
    );
}

#[test]
fn without_a_common_mechanism_the_error_names_those_of_the_broker() {
    let start = connection::Start::default().mechanisms("EXTERNAL GSSAPI");
    assert_eq!(
        receive(&mut Handshake::new(offer()), &frame(start)),
        Err(HandshakeFailure::NoMechanism {
            offered: "EXTERNAL GSSAPI".into()
        })
    );
}

#[test]
fn a_peer_with_another_version_of_the_protocol_gets_no_credentials() {
    let start = connection::Start::default;
    for (start, failure) in [
        (
            start().version_major(8).version_minor(0),
            HandshakeFailure::Version(*b"AMQP\0\x08\0\0"),
        ),
        (
            start().version_minor(10),
            HandshakeFailure::Version(*b"AMQP\0\0\x0a\0"),
        ),
        (
            start().locales("de_DE en_USA"),
            HandshakeFailure::NoLocale {
                offered: "de_DE en_USA".into(),
            },
        ),
        (
            start().locales(""),
            HandshakeFailure::NoLocale {
                offered: String::new(),
            },
        ),
    ] {
        let mut handshake = Handshake::new(offer());
        handshake.take_output();
        assert_eq!(receive(&mut handshake, &frame(start)), Err(failure));
        assert!(handshake.take_output().as_bytes().is_empty());
        assert_eq!(handshake.stage(), Stage::Header);
    }
}

#[test]
fn either_the_required_locale_or_the_client_s_own_is_accepted() {
    for (ours, theirs) in [
        ("de_DE", "en_US"),
        ("de_DE", "de_DE"),
        ("en_US", "de_DE en_us"),
    ] {
        let mut handshake = Handshake::new(Offer {
            locale: ours.into(),
            ..offer()
        });
        let start = connection::Start::default().locales(theirs);
        assert_eq!(receive(&mut handshake, &frame(start)), Ok(false));
        assert_eq!(handshake.stage(), Stage::Start);
    }
}

#[test]
fn a_challenge_without_an_answer_fails_with_the_name_of_the_mechanism() {
    let mut handshake = to_tune(offer());
    assert_eq!(
        receive(&mut handshake, &frame(connection::Secure::default())),
        Err(HandshakeFailure::NoAnswer {
            mechanism: "PLAIN".into()
        })
    );
}

/// A mechanism with these answers, which it returns one after the other.
struct Chatty(Vec<&'static str>);

impl Mechanism for Chatty {
    fn name(&self) -> &str {
        "CHATTY"
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
        match challenge {
            None => Some("hello".into()),
            Some(_) => self.0.pop().map(Secret::from),
        }
    }
}

#[test]
fn each_challenge_is_answered() {
    let mut handshake = Handshake::new(Offer {
        mechanisms: vec![Box::new(Chatty(vec!["second", "first"]))],
        ..offer()
    });
    handshake.take_output();
    let mut bytes = frame(connection::Start::default().mechanisms("PLAIN CHATTY"));
    bytes.extend(frame(connection::Secure::default()));
    bytes.extend(frame(connection::Secure::default()));
    assert_eq!(receive(&mut handshake, &bytes), Ok(false));
    let answers: Vec<_> = sent(&mut handshake)
        .into_iter()
        .map(|method| match method {
            Method::ConnectionStartOk(start_ok) => start_ok.response,
            Method::ConnectionSecureOk(secure_ok) => secure_ok.response,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answers, ["hello", "first", "second"].map(Secret::from));
    assert_eq!(handshake.mechanism(), Some("CHATTY"));
}

#[test]
fn the_client_s_first_mechanism_that_the_broker_supports_is_used() {
    for (broker, used) in [
        ("PLAIN EXTERNAL", "EXTERNAL"),
        ("PLAIN AMQPLAIN", "PLAIN"),
        ("amqplain", "AMQPLAIN"),
    ] {
        let ours = ["EXTERNAL", "PLAIN", "AMQPLAIN"];
        let mut handshake = Handshake::new(Offer {
            mechanisms: ours
                .iter()
                .map(|name| Box::new(Fixed(name, "")) as Box<dyn Mechanism>)
                .collect(),
            ..offer()
        });
        let start = connection::Start::default().mechanisms(broker);
        receive(&mut handshake, &frame(start)).unwrap();
        assert_eq!(handshake.mechanism(), Some(used));
    }
}

#[test]
fn methods_out_of_order_and_contents_are_errors() {
    let mut handshake = Handshake::new(offer());
    assert!(matches!(
        receive(&mut handshake, &frame(connection::OpenOk::default())),
        Err(HandshakeFailure::Protocol(
            ProtocolError::UnexpectedMethod { .. }
        ))
    ));
    let mut handshake = to_tune(offer());
    assert!(matches!(
        receive(&mut handshake, b"\x03\0\x01\0\0\0\x01x\xce"),
        Err(HandshakeFailure::Protocol(
            ProtocolError::UnexpectedContent(_)
        ))
    ));
}

#[test]
fn a_start_ok_beyond_the_limit_is_not_sent() {
    let mut handshake = Handshake::new(Offer {
        client_properties: FieldTable::from([("fat", "x".repeat(140_000))]),
        ..offer()
    });
    handshake.take_output();
    assert!(matches!(
        receive(&mut handshake, &frame(connection::Start::default())),
        Err(HandshakeFailure::Encode(EncodeError { what, flaw: Flaw::TooLong { limit: 131_072, .. } }))
            if what.contains("connection name")
    ));
    assert!(handshake.take_output().as_bytes().is_empty());
}
