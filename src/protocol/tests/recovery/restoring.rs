//! The script that restores a channel: its order, refused consumers, and consumes without a reply.

use super::*;

/// The broker's close of a channel that refuses a consumer.
fn refusal(code: u16) -> (channel::Close, CloseReason) {
    let close = channel::Close::default()
        .reply_code(code)
        .reply_text("no")
        .class_id(60)
        .method_id(20);
    let method = Some(basic::Consume::ID);
    (close, reason(ClosedBy::Broker, code, "no", method))
}

fn qos(count: u16) -> (u16, Method) {
    on(1, basic::Qos::new(count))
}

fn set_prefetch(scenario: &mut Scenario, id: ChannelId, qos: basic::Qos) {
    scenario.call(id, 9, qos);
    scenario.peer_sends(1, basic::QosOk::default());
    scenario.sent();
    scenario.events();
}

/// Answers each call of the script on channel 1, and returns the calls.
fn answer_script(scenario: &mut Scenario) -> Vec<Method> {
    let mut script = Vec::new();
    loop {
        let sent = scenario.sent();
        let Some((_, method)) = sent.into_iter().next() else {
            return script;
        };
        let reply: Method = match &method {
            Method::ChannelOpen(_) => channel::OpenOk::default().into(),
            Method::BasicQos(_) => basic::QosOk::default().into(),
            Method::ConfirmSelect(_) => confirm::SelectOk::default().into(),
            Method::TxSelect(_) => tx::SelectOk::default().into(),
            Method::BasicConsume(consume) => consume_ok(&consume.consumer_tag),
            _ => return script,
        };
        script.push(method);
        scenario.peer_sends(1, reply);
    }
}

fn methods_of(methods: impl IntoIterator<Item = (u16, Method)>) -> Vec<Method> {
    methods.into_iter().map(|(_, method)| method).collect()
}

#[test]
fn each_consumer_gets_the_prefetch_that_it_had_in_the_order_of_the_consumes() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "first");
    set_prefetch(&mut scenario, id, basic::Qos::new(5));
    scenario.consume(id, "b");
    scenario.consume(id, "a");
    let all = basic::Qos::new(100).global(true);
    set_prefetch(&mut scenario, id, all.clone());
    set_prefetch(&mut scenario, id, basic::Qos::new(0));
    scenario.consume(id, "last");
    set_prefetch(&mut scenario, id, basic::Qos::new(9));
    scenario.call(id, 1, confirm::Select::default());
    scenario.peer_sends(1, confirm::SelectOk::default());
    scenario.sent();
    scenario.lose();
    scenario.restore();
    let script = methods_of([
        open(),
        on(1, all),
        on(1, confirm::Select::default()),
        consume("first"),
        qos(5),
        consume("b"),
        consume("a"),
        qos(0),
        consume("last"),
        qos(9),
    ]);
    assert_eq!(answer_script(&mut scenario), script);
    // The script does not change the state that it restores.
    scenario.lose();
    scenario.restore();
    assert_eq!(answer_script(&mut scenario), script);
}

#[test]
fn a_consumer_comes_back_with_its_arguments_and_with_a_reply() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    let started = basic::Consume::new("q")
        .consumer_tag("c")
        .no_ack(true)
        .exclusive(true)
        .nowait(true)
        .argument("x-priority", 7);
    scenario.begin_consume_with(id, 1, "c", started.clone());
    scenario.sent();
    scenario.lose();
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open(), on(1, started.nowait(false))]);
}

#[test]
fn transactions_come_back() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, tx::Select::default());
    scenario.peer_sends(1, tx::SelectOk::default());
    scenario.sent();
    scenario.lose();
    scenario.restore();
    let script = methods_of([open(), on(1, tx::Select::default())]);
    assert_eq!(answer_script(&mut scenario), script);
}

#[test]
fn calls_wait_for_the_script_and_for_the_publishes_before_them() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.lose();
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.attach();
    scenario.core.restore_channels(scenario.now);
    scenario.feed(&frame(1, channel::OpenOk::default()));
    assert_eq!(scenario.gate(id), Gate::Suspended);
    scenario.feed(&frame(1, consume_ok("c")));
    // The driver sends what it has kept for the channel.
    assert_eq!(scenario.gate(id), Gate::Open);
    assert!(scenario.core.has_calls_to_send());
    let kept = frame(1, basic::Ack::new(1));
    scenario.core.output().extend(kept);
    assert_eq!(
        scenario.sent(),
        [
            open(),
            consume("c"),
            on(1, basic::Ack::new(1)),
            on(1, queue::Declare::new("q"))
        ]
    );
}

#[test]
fn each_channel_is_restored_by_itself() {
    let mut scenario = Scenario::new();
    for number in [1, 2, 3] {
        scenario.open_channel(number);
    }
    scenario.lose();
    scenario.events();
    scenario.restore();
    scenario.sent();
    for number in [3, 1] {
        scenario.peer_sends(number, channel::OpenOk::default());
        let name = NAMES[usize::from(number)];
        assert_eq!(
            scenario.events(),
            [Seen::Resumed(name), Seen::ChannelRestored(name)]
        );
    }
    assert_eq!(scenario.core.unrestored().collect::<Vec<_>>(), [&"two"]);
    scenario.peer_sends(2, channel::OpenOk::default());
    assert_eq!(scenario.events(), all_restored("two"));
}

#[test]
fn a_consume_without_a_reply_holds_up_publishes_for_five_seconds_and_calls_until_its_end() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.lose();
    scenario.call(id, 1, queue::Declare::new("q"));
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.events();
    scenario.pass(SECOND * 5 - Duration::from_millis(1));
    assert_eq!(scenario.gate(id), Gate::Suspended);
    assert_eq!(scenario.events(), []);
    scenario.pass(Duration::from_millis(1));
    assert!(
        scenario.core.has_calls_to_send(),
        "the driver sends what it has kept"
    );
    assert_eq!(scenario.events(), [Seen::Resumed("one")]);
    assert_eq!(scenario.gate(id), Gate::Open);
    assert_eq!(scenario.sent(), [open(), consume("c")]);
    scenario.pass(SECOND * 20);
    assert_eq!(scenario.gate(id), Gate::Open);
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(
        scenario.events(),
        [Seen::ChannelRestored("one"), Seen::Restored]
    );
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
}

#[test]
fn a_refused_consumer_costs_only_itself() {
    for code in [403, 404, 405, 406] {
        let mut scenario = Scenario::new();
        let id = scenario.open_channel(1);
        for tag in ["a", "b", "c"] {
            scenario.consume(id, tag);
        }
        scenario.reopen();
        scenario.peer_sends(1, consume_ok("a"));
        scenario.peer_sends_content(1, deliver("a", 1), None, b"x");
        scenario.sent();
        scenario.events();
        let (close, reason) = refusal(code);
        scenario.peer_sends(1, close);
        assert_eq!(
            scenario.events(),
            [suspended("one", 1), Seen::Refused("b", reason)]
        );
        assert_eq!(
            scenario.sent(),
            [on(1, channel::CloseOk::default()), open()]
        );
        scenario.peer_sends(1, channel::OpenOk::default());
        scenario.peer_sends(1, consume_ok("a"));
        scenario.peer_sends(1, consume_ok("c"));
        assert_eq!(scenario.sent(), [consume("a"), consume("c")]);
        assert_eq!(scenario.events(), all_restored("one"));
        let stale = scenario.settle_by_ledger("one", 1, Settle::Ack { multiple: false });
        assert_eq!(stale, None);
        scenario.peer_sends_content(1, deliver("a", 1), None, b"y");
        scenario.settle_by_ledger("one", 2, Settle::Ack { multiple: false });
        assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1))]);
    }
}

#[test]
fn a_refused_consumer_is_tried_again_on_request_and_on_the_next_connection() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    set_prefetch(&mut scenario, id, basic::Qos::new(3));
    scenario.consume(id, "c");
    set_prefetch(&mut scenario, id, basic::Qos::new(4));
    let refuse = |scenario: &mut Scenario| {
        scenario.peer_sends(1, refusal(404).0);
        let rest = [
            channel::OpenOk::default().into(),
            basic::QosOk::default().into(),
        ];
        rest.into_iter()
            .for_each(|reply: Method| scenario.peer_sends(1, reply));
        scenario.sent();
        scenario.events();
    };
    scenario.reopen();
    scenario.peer_sends(1, basic::QosOk::default());
    refuse(&mut scenario);
    for is_refused in [true, false] {
        scenario.resume(id, "c");
        scenario.call(id, 1, queue::Declare::new("q"));
        assert_eq!(scenario.sent(), [qos(3)]);
        assert_eq!(scenario.gate(id), Gate::Open);
        scenario.peer_sends(1, basic::QosOk::default());
        assert_eq!(scenario.sent(), [consume("c")]);
        if is_refused {
            refuse(&mut scenario);
            scenario.peer_sends(1, queue::DeclareOk::default());
            scenario.events();
        }
    }
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.events(), [Seen::ConsumerResumed("c")]);
    assert_eq!(scenario.sent(), [qos(4)]);
    scenario.peer_sends(1, basic::QosOk::default());
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
    scenario.resume(id, "c");
    assert_eq!(scenario.sent(), [], "it has started");
    scenario.peer_sends(1, queue::DeclareOk::default());
    scenario.lose();
    scenario.events();
    scenario.restore();
    let script = methods_of([open(), qos(3), consume("c"), qos(4)]);
    assert_eq!(answer_script(&mut scenario), script);
    assert_eq!(scenario.events(), all_restored("one"));
}

#[test]
fn a_refusal_behind_an_open_gate_makes_later_deliveries_stale_as_well() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.consume(id, "b");
    scenario.reopen();
    scenario.peer_sends(1, consume_ok("a"));
    scenario.pass(SECOND * 5);
    scenario.peer_sends_content(1, deliver("a", 1), None, b"x");
    scenario.settle_by_ledger("one", 1, Settle::Ack { multiple: false });
    scenario.sent();
    scenario.peer_sends(1, refusal(404).0);
    assert_eq!(scenario.gate(id), Gate::Suspended);
    let again = scenario.settle_by_ledger("one", 1, Settle::Ack { multiple: false });
    assert_eq!(again, None);
    let counts = scenario.ledgers("one").settlements.counts();
    assert_eq!((counts.settled, counts.stale), (1, 1));
}

#[test]
fn any_other_close_of_a_channel_that_is_restored_is_final() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.reopen();
    scenario.events();
    let (close, reason) = not_found();
    scenario.peer_sends(1, close);
    assert_eq!(
        scenario.events(),
        [
            Seen::ChannelClosed("one", Some(reason), vec!["c"]),
            Seen::Restored,
        ]
    );
    assert!(!scenario.core.is_open(id));
}

#[test]
fn the_last_declared_queue_is_named_on_a_reopened_channel() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.call(id, 1, queue::Declare::new(""));
    let declare_ok = || queue::DeclareOk::default().queue("amq.gen-1");
    scenario.peer_sends(1, declare_ok());
    let unnamed = || basic::Consume::new("").consumer_tag("c");
    scenario.begin_consume_with(id, 1, "c", unnamed());
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent().last(), Some(&on(1, unnamed())));
    scenario.reopen();
    scenario.peer_sends(1, consume_ok("c"));
    let named = basic::Consume::new("amq.gen-1").consumer_tag("c");
    assert_eq!(scenario.sent(), [on(1, named)]);
    scenario.call(id, 2, queue::Bind::new("", "x", ""));
    let bind = queue::Bind::new("amq.gen-1", "x", "amq.gen-1");
    assert_eq!(scenario.sent(), [on(1, bind)]);
    scenario.peer_sends(1, queue::BindOk::default());
    scenario.call(id, 3, queue::Unbind::new("", "x", "k"));
    let unbind = queue::Unbind::new("amq.gen-1", "x", "k");
    assert_eq!(scenario.sent(), [on(1, unbind)]);
    scenario.peer_sends(1, queue::UnbindOk::default());
    scenario.call(id, 4, queue::Purge::new("").nowait(true));
    scenario.call(id, 5, basic::Get::new(""));
    assert_eq!(
        scenario.sent(),
        [
            on(1, queue::Purge::new("amq.gen-1").nowait(true)),
            on(1, basic::Get::new("amq.gen-1"))
        ]
    );
}

#[test]
fn a_consumer_that_the_broker_cancels_during_the_script_ends() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.consume(id, "b");
    scenario.reopen();
    scenario.peer_sends(1, consume_ok("a"));
    scenario.sent();
    scenario.events();
    scenario.peer_sends(1, basic::Cancel::new("a").nowait(true));
    scenario.peer_sends(1, consume_ok("b"));
    let ended = Seen::ConsumerEnded("a", EndedBy::Broker);
    assert_eq!(
        scenario.events(),
        [vec![ended], all_restored("one").to_vec()].concat()
    );
    assert_eq!(
        scenario.sent(),
        [on(1, basic::Cancel::new("a").nowait(true))]
    );
    scenario.lose();
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent(), [open(), consume("b")]);
}

/// Closes the connection because of the consume on the wire. Returns the reason.
fn close_by_consume(scenario: &mut Scenario, code: u16) -> CloseReason {
    let close = connection::Close::default()
        .reply_code(code)
        .reply_text("no")
        .class_id(60)
        .method_id(20);
    scenario.peer_sends(0, close);
    let method = Some(basic::Consume::ID);
    let reason = reason(ClosedBy::Broker, code, "no", method);
    assert!(scenario.core.is_refusing_consumer(&reason));
    scenario.lose();
    scenario.events();
    scenario.restore();
    reason
}

#[test]
fn a_consumer_that_closes_the_connection_is_tried_once_more_and_then_ends() {
    for code in [530, 541] {
        let mut scenario = Scenario::new();
        scenario.core.outlive_losses();
        let id = scenario.open_channel(1);
        scenario.consume(id, "a");
        scenario.consume(id, "b");
        scenario.reopen();
        assert_eq!(scenario.sent(), [consume("a")]);
        let reason = close_by_consume(&mut scenario, code);
        assert_eq!(scenario.events(), [Seen::Suspected("a", reason.clone())]);
        assert_eq!(
            answer_script(&mut scenario),
            methods_of([open(), consume("b")])
        );
        scenario.events();
        scenario.resume(id, "a");
        assert_eq!(scenario.sent(), [consume("a")]);
        let second = close_by_consume(&mut scenario, code);
        let ended = Seen::ConsumerEnded("a", EndedBy::Broker);
        assert_eq!(scenario.events(), [Seen::Skipped("a", second), ended]);
        assert_eq!(
            answer_script(&mut scenario),
            methods_of([open(), consume("b")])
        );
    }
}

#[test]
fn a_success_in_between_acquits_a_consumer() {
    let mut scenario = Scenario::new();
    scenario.core.outlive_losses();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.reopen();
    scenario.sent();
    for _ in 0..3 {
        let reason = close_by_consume(&mut scenario, 541);
        assert_eq!(scenario.events(), [Seen::Suspected("a", reason)]);
        assert_eq!(answer_script(&mut scenario), methods_of([open()]));
        scenario.resume(id, "a");
        scenario.peer_sends(1, consume_ok("a"));
        scenario.reopen();
        assert_eq!(scenario.sent(), [consume("a")]);
    }
}

#[test]
fn a_refusal_does_not_drop_the_attempt_for_another_consumer() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.consume(id, "b");
    scenario.reopen();
    for _ in 0..2 {
        scenario.peer_sends(1, refusal(404).0);
        scenario.peer_sends(1, channel::OpenOk::default());
    }
    scenario.sent();
    scenario.resume(id, "a");
    scenario.resume(id, "b");
    assert_eq!(scenario.sent(), [consume("a")]);
    scenario.peer_sends(1, refusal(404).0);
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.sent().last(), Some(&consume("b")));
}

#[test]
fn a_skipped_consumer_ends_as_one_that_the_broker_cancels() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "a");
    scenario.reopen();
    let (close, reason) = refusal(404);
    scenario.peer_sends(1, close);
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.events();
    let skip = |scenario: &mut Scenario, token: &'static str| {
        let is_meant = |it: &&'static str| *it == token;
        scenario
            .core
            .skip_consumer(id, &"a".into(), is_meant, reason.clone());
    };
    skip(&mut scenario, "another with its tag");
    assert_eq!(scenario.events(), []);
    skip(&mut scenario, "a");
    let ended = Seen::ConsumerEnded("a", EndedBy::Broker);
    assert_eq!(
        scenario.events(),
        [Seen::Skipped("a", reason.clone()), ended]
    );
    scenario.reopen();
    assert_eq!(scenario.sent(), []);
}
