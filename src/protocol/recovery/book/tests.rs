use super::super::super::methods::basic;
use super::entity::Topology;
use super::*;

fn replied(method: impl Into<Method>) -> Reply {
    Reply::Method(method.into())
}

/// Records a call with a reply on channel 1.
fn record(book: &mut Book, method: impl Into<Method>) -> Option<BookWarning> {
    record_on(book, 1, method)
}

fn record_on(book: &mut Book, channel: u16, method: impl Into<Method>) -> Option<BookWarning> {
    let method = method.into();
    let reply = match &method {
        Method::QueueDeclare(declare) => replied(queue::DeclareOk::default().queue(&declare.queue)),
        // The other replies are all alike for the book.
        _ => replied(basic::QosOk::default()),
    };
    book.record(channel, &method, &reply)
}

/// Records a call without a reply on channel 1.
fn send(book: &mut Book, method: impl Into<Method>) -> Option<BookWarning> {
    book.record(1, &method.into(), &Reply::Sent)
}

fn consume(queue: &str, tag: &str) -> basic::Consume {
    basic::Consume::new(queue).consumer_tag(tag)
}

fn auto_delete_exchange(name: impl Into<ShortString>) -> exchange::Declare {
    exchange::Declare::new(name).auto_delete(true)
}

fn auto_delete_queue(name: impl Into<ShortString>) -> queue::Declare {
    queue::Declare::new(name).auto_delete(true)
}

/// Returns all entries that a restoration declares, in their order, as text.
fn planned(book: &Book, topology: Topology) -> Vec<String> {
    let plan = book.plan(topology);
    let kinds = [
        plan.exchanges,
        plan.exchange_bindings,
        plan.queues,
        plan.queue_bindings,
    ];
    let entities = kinds.into_iter().flatten();
    entities.map(|entity| entity.to_string()).collect()
}

fn all(book: &Book) -> Vec<String> {
    planned(book, Topology::All)
}

#[test]
fn the_plan_has_the_order_of_first_declaration_within_each_kind() {
    let mut book = Book::default();
    record(&mut book, queue::Declare::new("q2"));
    record(&mut book, exchange::Declare::new("x2"));
    record(&mut book, queue::Declare::new("q1"));
    record(&mut book, exchange::Declare::new("x1"));
    record(&mut book, queue::Bind::new("q1", "x2", "k"));
    record(&mut book, exchange::Bind::new("x1", "x2", "k"));
    record(&mut book, queue::Bind::new("q1", "amq.topic", "k"));
    record(&mut book, queue::Declare::new("q2"));
    assert_eq!(
        all(&book),
        [
            "exchange \"x2\"",
            "exchange \"x1\"",
            "binding of exchange \"x1\" to exchange \"x2\" with key \"k\"",
            "queue \"q2\"",
            "queue \"q1\"",
            "binding of queue \"q1\" to exchange \"x2\" with key \"k\"",
            "binding of queue \"q1\" to exchange \"amq.topic\" with key \"k\"",
        ]
    );
    // A deleted queue that is declared again is a new one.
    record(&mut book, queue::Delete::new("q2"));
    record(&mut book, queue::Declare::new("q2"));
    let queues = book.plan(Topology::All).queues;
    let [first, second] = ["q1", "q2"].map(|name| Entity::Queue(name.into()));
    assert_eq!(queues, [first, second]);
}

#[test]
fn a_restored_method_has_all_its_arguments_and_wants_a_reply() {
    let mut book = Book::default();
    let declare = queue::Declare::new("q")
        .exclusive(true)
        .argument("x-max-length", 5)
        .nowait(true);
    send(&mut book, declare.clone());
    let bind = queue::Bind::new("q", "amq.headers", "")
        .argument("b", 1)
        .argument("a", "text");
    record(&mut book, bind.clone());
    let plan = book.plan(Topology::All);
    assert_eq!(
        book.method(&plan.queues[0]),
        Some(declare.nowait(false).into())
    );
    assert_eq!(book.method(&plan.queue_bindings[0]), Some(bind.into()));
}

#[test]
fn names_of_the_broker_and_passive_declares_are_not_recorded() {
    let mut book = Book::default();
    record(&mut book, exchange::Declare::new("amq.topic"));
    record(&mut book, exchange::Declare::new(""));
    record(&mut book, exchange::Declare::new("x").passive(true));
    record(&mut book, queue::Declare::new("q").passive(true));
    record(&mut book, queue::Declare::new("amq.gen-1"));
    record(&mut book, queue::Bind::new("amq.gen-1", "x", "k"));
    record(&mut book, queue::Bind::new("q", "", "k"));
    record(&mut book, exchange::Bind::new("", "x", "k"));
    record(&mut book, consume("amq.rabbitmq.reply-to", "tag"));
    assert_eq!(book.len(), 0);
    record(
        &mut book,
        exchange::Bind::new("amq.topic", "amq.direct", "k"),
    );
    assert_eq!(book.len(), 1);
}

#[test]
fn the_name_in_the_reply_is_that_of_the_queue() {
    let mut book = Book::default();
    let reply = replied(queue::DeclareOk::default().queue("q"));
    book.record(1, &queue::Declare::new("q\n").into(), &reply);
    let method = book.method(&Entity::Queue("q".into()));
    assert_eq!(method, Some(queue::Declare::new("q").into()));
}

#[test]
fn an_auto_delete_queue_goes_with_its_last_consumer_and_takes_its_bindings() {
    let mut book = Book::default();
    record(&mut book, auto_delete_exchange("x"));
    record(&mut book, auto_delete_queue("q"));
    record(&mut book, queue::Bind::new("q", "x", "k"));
    record_on(&mut book, 1, consume("q", "a"));
    record_on(&mut book, 2, consume("q", "a"));
    record_on(&mut book, 1, basic::Cancel::new("a"));
    assert_eq!(book.len(), 4);
    record_on(&mut book, 2, basic::Cancel::new("a"));
    assert_eq!(book.len(), 0);
}

#[test]
fn a_close_of_the_channel_ends_its_consumers_only() {
    let mut book = Book::default();
    for name in ["q1", "q2"] {
        record(&mut book, auto_delete_queue(name));
    }
    record(&mut book, queue::Declare::new("q3"));
    record_on(&mut book, 1, consume("q1", "a"));
    record_on(&mut book, 1, consume("q3", "b"));
    record_on(&mut book, 2, consume("q2", "a"));
    book.channel_closed(1, None);
    assert_eq!(all(&book), ["queue \"q2\"", "queue \"q3\""]);
    assert_eq!(book.len(), 3);
}

#[test]
fn a_queue_whose_consumer_the_broker_has_cancelled_is_declared_again() {
    let mut book = Book::default();
    record(&mut book, auto_delete_queue("q"));
    record(&mut book, consume("q", "a"));
    book.consumer_cancelled(1, &"a".into());
    assert_eq!(all(&book), ["queue \"q\""]);
    record(&mut book, consume("q", "b"));
    record(&mut book, basic::Cancel::new("b"));
    assert_eq!(book.len(), 0);
}

#[test]
fn a_consumer_that_starts_again_after_a_loss_counts_once() {
    let mut book = Book::default();
    record(&mut book, auto_delete_queue("q"));
    record(&mut book, consume("q", "a"));
    book.connection_lost();
    record(&mut book, consume("q", "a"));
    assert_eq!(book.len(), 2);
    record(&mut book, basic::Cancel::new("a"));
    assert_eq!(book.len(), 0);
}

#[test]
fn a_chain_of_auto_delete_exchanges_goes_with_its_last_binding() {
    let mut book = Book::default();
    let count = 10_000;
    for number in 0..count {
        record(&mut book, auto_delete_exchange(number.to_string()));
    }
    for number in 1..count {
        let (to, from) = ((number - 1).to_string(), number.to_string());
        record(&mut book, exchange::Bind::new(to, from, "k"));
    }
    record(&mut book, queue::Declare::new("q"));
    record(&mut book, queue::Bind::new("q", "0", "k"));
    record(&mut book, queue::Unbind::new("q", "0", "k"));
    assert_eq!(all(&book), ["queue \"q\""]);
}

#[test]
fn an_exchange_that_is_bound_to_itself_can_be_deleted() {
    let mut book = Book::default();
    record(&mut book, auto_delete_exchange("x"));
    record(&mut book, exchange::Bind::new("x", "x", "k"));
    record(&mut book, exchange::Delete::new("x"));
    assert_eq!(book.len(), 0);
}

#[test]
fn bindings_are_equal_in_any_order_of_their_arguments() {
    let mut book = Book::default();
    let bind = queue::Bind::new("q", "x", "k");
    record(&mut book, bind.clone().argument("a", 1).argument("b", 2));
    record(&mut book, bind.clone().argument("b", 2).argument("a", 1));
    assert_eq!(book.len(), 1);
    record(&mut book, bind.clone().argument("b", 1).argument("a", 2));
    record(&mut book, bind);
    assert_eq!(book.len(), 3);
    let unbind = queue::Unbind::new("q", "x", "k");
    record(&mut book, unbind.argument("b", 2).argument("a", 1));
    assert_eq!(book.len(), 2);
}

#[test]
fn a_refused_call_without_a_reply_is_forgotten() {
    let declare = || queue::Declare::new("q").nowait(true);
    let mut book = Book::default();
    record(&mut book, auto_delete_exchange("x"));
    send(&mut book, declare());
    // The binding never existed, so the exchange has not lost one.
    send(&mut book, queue::Bind::new("other", "x", "k").nowait(true));
    book.channel_closed(1, Some(queue::Bind::ID));
    assert_eq!(all(&book), ["exchange \"x\"", "queue \"q\""]);

    // The queue is not proven, but the channel that has sent the declare is closed.
    book.channel_closed(1, Some(queue::Declare::ID));
    assert_eq!(book.len(), 2);

    send(&mut book, consume("q", "a").nowait(true));
    book.channel_closed(1, Some(basic::Consume::ID));
    assert_eq!(book.len(), 2);
}

#[test]
fn a_refused_declare_takes_its_bindings_without_their_exchanges() {
    let mut book = Book::default();
    record(&mut book, auto_delete_exchange("x"));
    send(&mut book, queue::Declare::new("q").nowait(true));
    send(&mut book, queue::Bind::new("q", "x", "k").nowait(true));
    book.channel_closed(1, Some(queue::Declare::ID));
    assert_eq!(all(&book), ["exchange \"x\""]);
}

#[test]
fn a_later_reply_on_the_channel_proves_a_call_without_a_reply() {
    let mut book = Book::default();
    send(&mut book, queue::Declare::new("q1").nowait(true));
    record_on(&mut book, 2, basic::Qos::new(1));
    record(&mut book, basic::Qos::new(1));
    send(&mut book, queue::Declare::new("q2").nowait(true));
    book.channel_closed(1, Some(queue::Declare::ID));
    assert_eq!(all(&book), ["queue \"q1\""]);
}

#[test]
fn a_declare_without_a_reply_does_not_change_an_entry() {
    let mut book = Book::default();
    let declare = queue::Declare::new("q").argument("x-max-length", 1);
    record(&mut book, declare.clone());
    send(&mut book, queue::Declare::new("q").nowait(true));
    book.channel_closed(1, Some(queue::Declare::ID));
    let entity = Entity::Queue("q".into());
    assert_eq!(book.method(&entity), Some(declare.into()));
    // A reply shows that the old queue was deleted by others.
    record(&mut book, queue::Declare::new("q"));
    assert_eq!(book.method(&entity), Some(queue::Declare::new("q").into()));
}

#[test]
fn an_empty_name_is_that_of_the_queue_last_declared_on_the_channel() {
    let mut book = Book::default();
    let resolved = |book: &Book, channel, method: Method| {
        let mut method = method;
        book.resolve(channel, &mut method);
        method
    };
    let unknown = resolved(&book, 1, basic::Get::new("").into());
    assert_eq!(unknown, basic::Get::new("").into());
    record_on(&mut book, 1, queue::Declare::new("q1"));
    record_on(&mut book, 2, queue::Declare::new("q2").passive(true));
    for (channel, name) in [(1, "q1"), (2, "q2")] {
        for (given, expected) in [
            (
                Method::from(queue::Bind::new("", "x", "k")),
                Method::from(queue::Bind::new(name, "x", "k")),
            ),
            (
                queue::Unbind::new("", "x", "k").into(),
                queue::Unbind::new(name, "x", "k").into(),
            ),
            (queue::Purge::new("").into(), queue::Purge::new(name).into()),
            (
                queue::Delete::new("").into(),
                queue::Delete::new(name).into(),
            ),
            (basic::Get::new("").into(), basic::Get::new(name).into()),
            (
                basic::Consume::new("").into(),
                basic::Consume::new(name).into(),
            ),
            (
                queue::Declare::new("").into(),
                queue::Declare::new("").into(),
            ),
        ] {
            assert_eq!(resolved(&book, channel, given), expected);
        }
    }
    book.channel_closed(1, None);
    let unknown = resolved(&book, 1, basic::Get::new("").into());
    assert_eq!(unknown, basic::Get::new("").into());
}

#[test]
fn a_renamed_queue_keeps_everything_and_is_known_by_its_first_name() {
    let [old, new] = [1, 2].map(names::client_made_name);
    let mut book = Book::default();
    record(&mut book, auto_delete_queue(&old));
    record(&mut book, queue::Declare::new("other"));
    record(&mut book, auto_delete_exchange("x"));
    record(&mut book, queue::Bind::new(&old, "x", "k"));
    record(&mut book, consume(&old, "a"));
    record(&mut book, queue::Declare::new(&old).passive(true));
    assert!(book.rename_queue(&old, &new));
    let plan = book.plan(Topology::All);
    assert_eq!(plan.queues[0], Entity::Queue(new.clone()));
    let bind = queue::Bind::new(&new, "x", "k");
    assert_eq!(book.method(&plan.queue_bindings[0]), Some(bind.into()));
    for name in ["", &old, &new] {
        let mut get = basic::Get::new(name).into();
        book.resolve(1, &mut get);
        assert_eq!(get, basic::Get::new(&new).into());
    }
    record(&mut book, basic::Cancel::new("a"));
    assert_eq!(all(&book), ["queue \"other\""]);
    let mut get = basic::Get::new(&old).into();
    book.resolve(1, &mut get);
    assert_eq!(get, basic::Get::new(&old).into());
}

#[test]
fn a_name_that_the_program_has_chosen_is_never_changed() {
    let mut book = Book::default();
    record(&mut book, queue::Declare::new("q"));
    let new = names::client_made_name(1);
    assert!(!book.rename_queue(&"q".into(), &new));
    assert!(!book.rename_queue(&names::client_made_name(2), &new));
    assert_eq!(all(&book), ["queue \"q\""]);
}

#[test]
fn the_filter_covers_what_the_broker_may_have_deleted() {
    let mut book = Book::default();
    record(&mut book, exchange::Declare::new("durable").durable(true));
    record(&mut book, exchange::Declare::new("transient"));
    record(&mut book, auto_delete_exchange("auto").durable(true));
    record(&mut book, queue::Declare::new("durable"));
    record(&mut book, queue::Declare::new("transient").durable(false));
    record(&mut book, auto_delete_queue("auto"));
    record(&mut book, queue::Declare::new("exclusive").exclusive(true));
    record(&mut book, queue::Bind::new("durable", "durable", "k"));
    record(&mut book, queue::Bind::new("durable", "auto", "k"));
    record(&mut book, queue::Bind::new("exclusive", "amq.topic", "k"));
    record(&mut book, exchange::Bind::new("amq.topic", "durable", "k"));
    record(&mut book, exchange::Bind::new("transient", "durable", "k"));
    assert_eq!(
        planned(&book, Topology::Transient),
        [
            "exchange \"transient\"",
            "exchange \"auto\"",
            "binding of exchange \"transient\" to exchange \"durable\" with key \"k\"",
            "queue \"transient\"",
            "queue \"auto\"",
            "queue \"exclusive\"",
            "binding of queue \"durable\" to exchange \"auto\" with key \"k\"",
            "binding of queue \"exclusive\" to exchange \"amq.topic\" with key \"k\"",
        ]
    );
    assert_eq!(planned(&book, Topology::Off).len(), 0);
    assert_eq!(all(&book).len(), 12);
}

#[test]
fn two_warnings_tell_of_a_growing_book_and_further_entries_are_not_recorded() {
    let mut book = Book::default();
    let declare = |number: usize| queue::Declare::new(number.to_string());
    for number in 0..ENTRIES_MAX {
        let expected = (number + 1 == ENTRIES_MANY).then_some(BookWarning::Many);
        assert_eq!(record(&mut book, declare(number)), expected, "{number}");
    }
    let full = Some(BookWarning::Full);
    assert_eq!(record(&mut book, declare(ENTRIES_MAX)), full);
    assert_eq!(record(&mut book, exchange::Declare::new("x")), None);
    assert_eq!(record(&mut book, queue::Bind::new("1", "x", "k")), None);
    assert_eq!(record(&mut book, consume("1", "a")), None);
    assert_eq!(book.len(), ENTRIES_MAX);
    assert_eq!(record(&mut book, declare(1)), None);
    record(&mut book, queue::Delete::new("1"));
    record(&mut book, exchange::Declare::new("x"));
    assert_eq!(book.len(), ENTRIES_MAX);
    assert!(book.has_endpoint(&Endpoint::Exchange("x".into())));
    assert_eq!(book.plan(Topology::All).queues.len(), ENTRIES_MAX - 1);
}

/// Returns the number of elements for which the book has reserved memory, as far as that is known.
fn reserved(book: &Book) -> usize {
    let unproven = book.unproven.values().map(Unproven::len);
    book.exchanges.capacity()
        + book.queues.capacity()
        + book.bindings.len()
        + book.consumers.len()
        + book.last_declared.capacity()
        + book.strikes.capacity()
        + unproven.sum::<usize>()
}

#[test]
fn a_million_names_that_come_and_go_leave_nothing_behind() {
    let mut book = Book::default();
    for number in 0..250_000 {
        let name = ShortString::from(number.to_string());
        record(&mut book, auto_delete_exchange(&name));
        record(&mut book, auto_delete_queue(&name));
        record(&mut book, queue::Bind::new(&name, &name, "k"));
        record(&mut book, consume(&name, "a"));
        record(&mut book, basic::Cancel::new("a"));
    }
    assert_eq!(book.len(), 0);
    assert!(reserved(&book) < 100, "{}", reserved(&book));
}

#[test]
fn names_that_come_and_go_without_replies_leave_little_behind() {
    let mut book = Book::default();
    for number in 0..100_000 {
        let name = ShortString::from(number.to_string());
        send(&mut book, queue::Declare::new(&name).nowait(true));
        send(&mut book, queue::Delete::new(&name).nowait(true));
    }
    assert_eq!(book.len(), 0);
    assert!(reserved(&book) < 200, "{}", reserved(&book));
}

#[test]
fn strikes_end_with_the_entry_or_with_the_next_success() {
    let reason = CloseReason::new(
        super::super::super::close_reason::ClosedBy::Broker,
        541,
        "",
        None,
    );
    let mut book = Book::default();
    let queue = Entity::Queue("q".into());
    let exchange = Entity::Exchange("x".into());
    record(&mut book, exchange::Declare::new("x"));
    record(&mut book, queue::Declare::new("q"));
    record(&mut book, queue::Bind::new("q", "x", "k"));
    let binding = book.plan(Topology::All).queue_bindings[0].clone();
    let entities = [&queue, &exchange, &binding];
    let strike_all = |book: &mut Book| {
        for entity in entities {
            book.strike(entity, &reason);
        }
    };
    strike_all(&mut book);
    assert!(
        entities
            .iter()
            .all(|entity| !book.strikes(entity).unwrap().is_out())
    );
    strike_all(&mut book);
    assert!(
        entities
            .iter()
            .all(|entity| book.strikes(entity).unwrap().is_out())
    );
    record(&mut book, queue::Declare::new("q"));
    record(&mut book, exchange::Declare::new("x"));
    record(&mut book, queue::Bind::new("q", "x", "k"));
    assert!(book.strikes.is_empty());
    strike_all(&mut book);
    record(&mut book, exchange::Delete::new("x"));
    record(&mut book, queue::Delete::new("q"));
    assert!(book.strikes.is_empty());
}
