//! Consumers that the broker cancels on a living connection.

use super::super::super::property_match::DIRECT_REPLY_TO;
use super::*;

fn scenario() -> (Scenario, ChannelId) {
    let mut scenario = Scenario::new();
    scenario.core.outlive_losses();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    (scenario, id)
}

fn cancel(scenario: &mut Scenario, tag: &str) {
    scenario.peer_sends(1, basic::Cancel::new(tag).nowait(true));
}

fn own_cancel(tag: &str) -> (u16, Method) {
    on(1, basic::Cancel::new(tag).nowait(true))
}

fn end(scenario: &mut Scenario, id: ChannelId, token: &'static str) {
    let is_meant = |it: &&'static str| *it == token;
    scenario.core.end_cancelled(id, &"a".into(), is_meant);
    scenario.look();
}

const ENDED: Seen = Seen::ConsumerEnded("a", EndedBy::Broker);

#[test]
fn a_cancelled_consumer_starts_again_with_its_tag_behind_our_own_cancel() {
    let (mut scenario, id) = scenario();
    for round in 1..=20 {
        cancel(&mut scenario, "a");
        assert_eq!(scenario.events(), [Seen::Awaited("a")]);
        assert_eq!(scenario.sent(), [own_cancel("a")]);
        scenario.resume(id, "a");
        assert_eq!(scenario.sent(), [consume("a")]);
        scenario.peer_sends(1, consume_ok("a"));
        scenario.peer_sends_content(1, deliver("a", round), None, b"x");
        assert_eq!(
            scenario.events(),
            [Seen::ConsumerResumed("a"), delivery("a", round, b"x")]
        );
    }
}

fn delivery(consumer: &'static str, tag: u64, body: &[u8]) -> Seen {
    Seen::Delivery(consumer, tag, body.to_vec())
}

#[test]
fn the_prefetch_of_its_first_start_comes_back_for_a_while() {
    let (mut scenario, id) = scenario();
    scenario.call(id, 9, basic::Qos::new(7));
    scenario.peer_sends(1, basic::QosOk::default());
    cancel(&mut scenario, "a");
    scenario.sent();
    scenario.resume(id, "a");
    scenario.peer_sends(1, basic::QosOk::default());
    scenario.peer_sends(1, consume_ok("a"));
    let qos = |count| on(1, basic::Qos::new(count));
    assert_eq!(scenario.sent(), [qos(0), consume("a"), qos(7)]);
}

#[test]
fn our_own_cancel_precedes_the_consume_even_within_a_script() {
    let (mut scenario, id) = scenario();
    scenario.consume(id, "b");
    scenario.reopen();
    scenario.peer_sends(1, consume_ok("a"));
    scenario.sent();
    // The consume of `b` has no reply yet.
    cancel(&mut scenario, "a");
    scenario.resume(id, "a");
    assert_eq!(scenario.sent(), []);
    scenario.peer_sends(1, consume_ok("b"));
    assert_eq!(scenario.sent(), [own_cancel("a"), consume("a")]);
}

#[test]
fn a_second_cancel_by_the_broker_changes_nothing() {
    let (mut scenario, id) = scenario();
    cancel(&mut scenario, "a");
    scenario.sent();
    scenario.events();
    cancel(&mut scenario, "a");
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.events(), []);
    scenario.resume(id, "a");
    assert_eq!(scenario.sent(), [consume("a")]);
}

#[test]
fn a_cancelled_consumer_that_is_gone_ends() {
    let (mut scenario, id) = scenario();
    end(&mut scenario, id, "a");
    assert_eq!(scenario.events(), [], "it has deliveries");
    cancel(&mut scenario, "a");
    scenario.events();
    end(&mut scenario, id, "another with its tag");
    assert_eq!(scenario.events(), []);
    end(&mut scenario, id, "a");
    assert_eq!(scenario.events(), [ENDED]);
    scenario.sent();
    scenario.resume(id, "a");
    assert_eq!(scenario.sent(), []);
}

#[test]
fn a_cancel_by_the_program_ends_a_cancelled_consumer() {
    for resumes in [false, true] {
        let (mut scenario, id) = scenario();
        cancel(&mut scenario, "a");
        scenario.events();
        if resumes {
            scenario.resume(id, "a");
        }
        scenario.call(id, 1, basic::Cancel::new("a"));
        if resumes {
            scenario.peer_sends(1, consume_ok("a"));
        }
        scenario.sent();
        scenario.events();
        scenario.peer_sends(1, cancel_ok("a"));
        let ended = Seen::ConsumerEnded("a", EndedBy::Us);
        let reply = Seen::Reply(1, cancel_ok("a"));
        assert_eq!(scenario.events(), [ended, reply]);
        scenario.resume(id, "a");
        assert_eq!(scenario.sent(), []);
    }
}

#[test]
fn a_consumer_without_an_owner_ends_and_leaves_no_phantom() {
    let (mut scenario, id) = scenario();
    cancel(&mut scenario, "a");
    scenario.resume(id, "a");
    scenario
        .core
        .discard_consumer(id, &"a".into(), |token| *token == "a");
    scenario.events();
    assert_eq!(scenario.sent(), [own_cancel("a"), consume("a")]);
    // The consume is answered late.
    scenario.pass(SECOND * 60);
    scenario.peer_sends(1, consume_ok("a"));
    assert_eq!(scenario.sent(), [on(1, basic::Cancel::new("a"))]);
    scenario.peer_sends(1, cancel_ok("a"));
    let ended = Seen::ConsumerEnded("a", EndedBy::Us);
    assert_eq!(scenario.events().last(), Some(&ended));
}

#[test]
fn a_loss_starts_a_cancelled_consumer_with_the_others() {
    for resumes in [false, true] {
        let (mut scenario, id) = scenario();
        scenario.consume(id, "b");
        cancel(&mut scenario, "a");
        if resumes {
            scenario.resume(id, "a");
        }
        scenario.sent();
        scenario.reopen();
        assert_eq!(scenario.sent(), [consume("a")]);
        scenario.peer_sends(1, consume_ok("a"));
        assert_eq!(scenario.sent(), [consume("b")]);
        scenario.events();
        scenario.resume(id, "a");
        assert_eq!(scenario.sent(), []);
    }
}

#[test]
fn a_close_of_the_channel_ends_a_cancelled_consumer() {
    let (mut scenario, id) = scenario();
    cancel(&mut scenario, "a");
    scenario.sent();
    scenario.begin_close_channel(id, 1);
    scenario.resume(id, "a");
    end(&mut scenario, id, "a");
    let sent = scenario.sent();
    assert!(
        matches!(&sent[..], [(1, Method::ChannelClose(_))]),
        "{sent:?}"
    );
}

#[test]
fn a_consumer_of_direct_replies_ends_at_once() {
    let (mut scenario, id) = scenario();
    let consume = basic::Consume::new(DIRECT_REPLY_TO).consumer_tag("r");
    scenario.begin_consume_with(id, 1, "r", consume.no_ack(true));
    scenario.peer_sends(1, consume_ok("r"));
    scenario.events();
    cancel(&mut scenario, "r");
    let ended = Seen::ConsumerEnded("r", EndedBy::Broker);
    assert_eq!(scenario.events(), [ended]);
}

#[test]
fn the_queue_of_a_consumer_has_its_name_even_if_the_program_did_not_name_it() {
    let (mut scenario, id) = scenario();
    scenario.call(id, 1, queue::Declare::new(""));
    scenario.peer_sends(1, queue::DeclareOk::default().queue("amq.gen-1"));
    let consume = basic::Consume::new("").consumer_tag("b");
    scenario.begin_consume_with(id, 2, "b", consume);
    let queue = scenario.core.queue_of(id, &"b".into());
    assert_eq!(queue.map(|it| &**it), Some("amq.gen-1"));
}
