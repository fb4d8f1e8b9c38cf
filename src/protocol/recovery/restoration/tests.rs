use super::super::super::event::Reply;
use super::super::super::methods::{basic, connection, exchange, queue};
use super::super::tests::model::{Driver, Model, call, refusal, settings};
use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn queue_entity(name: &str) -> Entity {
    Entity::Queue(name.into())
}

/// A book and the broker that knows the same.
#[derive(Default)]
struct Setup {
    book: Book,
    model: Model,
}

impl Setup {
    fn with(methods: impl IntoIterator<Item = Method>) -> Self {
        let mut setup = Self::default();
        for method in methods {
            assert!(call(&mut setup.book, &mut setup.model, 1, false, method));
        }
        setup
    }

    /// Begins a restoration by all lanes.
    fn restore(&mut self) -> Driver {
        self.restore_with(Topology::All, LANES_MAX)
    }

    fn restore_with(&mut self, topology: Topology, lanes: usize) -> Driver {
        let mut driver = Driver::new(&self.book, settings(topology, lanes));
        driver.make_calls(&self.book);
        driver
    }

    fn run(&mut self, driver: &mut Driver) {
        driver.run(&mut self.model, &mut self.book);
    }

    fn refuse(&mut self, driver: &mut Driver, code: u16) {
        driver.answer(0, Err(code), &mut self.book);
    }

    fn accept(&mut self, driver: &mut Driver) {
        driver.step(0, &mut self.model, &mut self.book);
    }
}

fn queues(names: &[&str]) -> Vec<Method> {
    names
        .iter()
        .map(|name| queue::Declare::new(*name).into())
        .collect()
}

fn names(entities: &Listed<Entity>) -> Vec<String> {
    entities.first.iter().map(ToString::to_string).collect()
}

fn skipped(driver: &mut Driver) -> Vec<(String, u16)> {
    let skipped = driver.restoration.take_report().skipped.first;
    let skipped = skipped.into_iter();
    skipped
        .map(|(entity, reason)| (entity.to_string(), reason.code.into()))
        .collect()
}

fn close(code: u16, text: &str, method: impl Into<Method>) -> Termination {
    let method = Some(method.into().id());
    Termination::Closed(CloseReason::new(ClosedBy::Broker, code, text, method))
}

#[test]
fn a_kind_begins_when_the_kind_before_is_answered() {
    let mut setup = Setup::with([
        queue::Declare::new("q").into(),
        exchange::Declare::new("x1").into(),
        exchange::Declare::new("x2").into(),
        exchange::Bind::new("x1", "x2", "k").into(),
        queue::Bind::new("q", "x1", "k").into(),
    ]);
    let mut driver = setup.restore();
    let in_flight = |driver: &Driver| -> Vec<String> {
        let calls = driver.calls.iter();
        calls.map(|(_, method)| method.id().to_string()).collect()
    };
    assert_eq!(in_flight(&driver), ["exchange.declare", "exchange.declare"]);
    setup.accept(&mut driver);
    assert_eq!(in_flight(&driver), ["exchange.declare"]);
    for next in ["exchange.bind", "queue.declare", "queue.bind"] {
        setup.accept(&mut driver);
        assert_eq!(in_flight(&driver), [next]);
        assert!(!driver.restoration.is_through(driver.now));
    }
    setup.accept(&mut driver);
    assert!(driver.restoration.is_through(driver.now));
    assert_eq!(driver.restoration.poll_timeout(driver.now), None);
}

#[test]
fn each_lane_has_one_call_and_gets_none_before_it_is_open() {
    let mut setup = Setup::with(queues(&["a", "b", "c", "d", "e", "f"]));
    let mut restoration = Restoration::new(&setup.book, settings(Topology::All, 9));
    assert_eq!(restoration.lanes(), LANES_MAX);
    let now = Instant::now();
    assert_eq!(restoration.next(&setup.book, now, || 0), None);
    assert!(restoration.needs_lane(now));
    restoration.opened(2);
    assert!(!restoration.needs_lane(now));
    let call = restoration.next(&setup.book, now, || 0).unwrap();
    assert_eq!(call.lane, 2);
    assert_eq!(restoration.next(&setup.book, now, || 0), None);
    let reason = refusal(403, &call.method);
    let outcome = Outcome::Closed(&reason);
    restoration.done(2, &outcome, &mut setup.book, now);
    assert_eq!(restoration.next(&setup.book, now, || 0), None);
    restoration.opened(2);
    assert_eq!(restoration.next(&setup.book, now, || 0).unwrap().lane, 2);
    let driver = setup.restore();
    assert_eq!(driver.calls.len(), LANES_MAX);
}

#[test]
fn a_refused_entry_is_skipped_reported_and_kept() {
    for code in [406, 403, 501] {
        let mut setup = Setup::with([
            queue::Declare::new("q1").into(),
            queue::Declare::new("q2").into(),
            queue::Bind::new("q1", "amq.topic", "k").into(),
        ]);
        let mut driver = setup.restore();
        setup.refuse(&mut driver, code);
        setup.run(&mut driver);
        assert!(driver.restoration.is_through(driver.now));
        // The queue may exist all the same, so its binding was made.
        assert_eq!(driver.made.len(), 3);
        assert_eq!(skipped(&mut driver), [("queue \"q1\"".to_owned(), code)]);
        assert_eq!(setup.book.len(), 3);
    }
}

#[test]
fn a_locked_queue_is_declared_again_until_it_is_free_and_its_bindings_follow() {
    let mut setup = Setup::with([
        queue::Declare::new("locked").exclusive(true).into(),
        queue::Declare::new("other").into(),
        queue::Bind::new("locked", "amq.topic", "k").into(),
        queue::Bind::new("other", "amq.topic", "k").into(),
    ]);
    let before = setup.model.clone();
    setup.model.lose();
    let mut driver = setup.restore();
    setup.run(&mut driver);
    assert!(driver.restoration.is_through(driver.now));
    let waiting = driver.restoration.waiting(driver.now);
    assert_eq!(names(&waiting), ["queue \"locked\""]);
    assert_eq!(driver.made.len(), 3);
    let mut delays = Vec::new();
    for _ in 0..10 {
        let since = driver.now;
        assert!(driver.pass_time(&setup.book));
        delays.push(driver.now - since);
        setup.run(&mut driver);
    }
    let expected = [
        250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000,
    ];
    assert_eq!(delays, expected.map(Duration::from_millis));
    assert_eq!(driver.made.len(), 13);
    setup.model.clean_up();
    driver.pass_time(&setup.book);
    setup.run(&mut driver);
    assert_eq!(setup.model, before);
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
    let report = driver.restoration.take_report();
    assert_eq!(report.skipped.count, 0);
    assert_eq!(report.recreated.first, ["locked"]);
}

#[test]
fn a_declared_queue_is_settled_when_its_bindings_are_answered_or_hang() {
    let mut setup = Setup::with([
        queue::Declare::new("locked").exclusive(true).into(),
        queue::Bind::new("locked", "amq.topic", "1").into(),
        queue::Bind::new("locked", "amq.topic", "2").into(),
    ]);
    for hangs in [false, true] {
        let mut driver = setup.restore_with(Topology::All, 2);
        setup.refuse(&mut driver, 405);
        assert!(driver.restoration.is_settled(driver.now));
        assert!(driver.pass_time(&setup.book));
        setup.accept(&mut driver);
        for binding in ["1", "2"] {
            assert!(!driver.restoration.is_settled(driver.now), "{binding}");
            match hangs {
                true => driver.now += HANG_TIME / 2,
                false => setup.accept(&mut driver),
            }
        }
        assert!(driver.restoration.is_settled(driver.now));
    }
}

#[test]
fn a_queue_of_a_node_that_is_down_is_tried_for_ever() {
    let mut setup = Setup::with(queues(&["q"]));
    let mut driver = setup.restore();
    for _ in 0..100 {
        setup.refuse(&mut driver, 404);
        assert!(driver.restoration.is_through(driver.now));
        assert!(driver.pass_time(&setup.book));
        assert_eq!(driver.calls.len(), 1);
    }
    setup.accept(&mut driver);
    assert_eq!(skipped(&mut driver), []);
    assert!(!driver.pass_time(&setup.book));
}

#[test]
fn a_waiting_queue_that_the_program_deletes_is_not_declared_again() {
    let mut setup = Setup::with(queues(&["q"]));
    let mut driver = setup.restore();
    setup.refuse(&mut driver, 404);
    let delete = queue::Delete::new("q").into();
    call(&mut setup.book, &mut setup.model, 1, false, delete);
    assert!(driver.pass_time(&setup.book));
    assert_eq!(driver.calls, []);
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
    assert!(!driver.pass_time(&setup.book));
}

#[test]
fn a_client_made_name_is_replaced_when_its_lock_outlasts_three_heartbeats() {
    let old = client_made_name(1);
    let mut setup = Setup::with([
        queue::Declare::new(&old).exclusive(true).into(),
        queue::Declare::new("chosen").exclusive(true).into(),
        queue::Bind::new(&old, "amq.topic", "k").into(),
        basic::Consume::new(&old).consumer_tag("tag").into(),
    ]);
    setup.model.lose();
    let mut driver = setup.restore();
    let since = driver.now;
    setup.run(&mut driver);
    let report = loop {
        assert!(driver.pass_time(&setup.book));
        setup.run(&mut driver);
        let report = driver.restoration.take_report();
        if !report.renamed.is_empty() {
            break report;
        }
        assert!(driver.now - since < secs(70));
    };
    assert!(driver.now - since >= secs(35));
    let new = client_made_name(7);
    assert_eq!(report.renamed, [(old.clone(), new.clone())]);
    assert_eq!(report.recreated.first, std::slice::from_ref(&new));
    let bind = queue::Bind::new(&new, "amq.topic", "k");
    assert_eq!(driver.made.last(), Some(&bind.into()));
    let mut consume = basic::Consume::new(&old).into();
    setup.book.resolve(1, &mut consume);
    assert_eq!(consume, basic::Consume::new(&new).into());
    // The name that the program has chosen stays.
    for _ in 0..10 {
        driver.pass_time(&setup.book);
        setup.run(&mut driver);
    }
    let waiting = driver.restoration.waiting(driver.now);
    assert_eq!(names(&waiting), ["queue \"chosen\""]);
}

#[test]
fn a_binding_that_is_not_found_has_its_exchange_and_queue_declared_once_more() {
    let mut setup = Setup::with([
        exchange::Declare::new("x").auto_delete(true).into(),
        queue::Declare::new("q").auto_delete(true).into(),
        queue::Bind::new("q", "x", "1").into(),
        queue::Bind::new("q", "x", "2").into(),
    ]);
    let before = setup.model.clone();
    let mut driver = setup.restore_with(Topology::All, 1);
    for _ in 0..3 {
        setup.accept(&mut driver);
    }
    // The end of the old connection takes the queue, and the exchange with its last binding.
    setup.model.delete_queue(&"q".into());
    setup.run(&mut driver);
    assert_eq!(setup.model, before);
    assert_eq!(skipped(&mut driver), []);
    let declares = |id| {
        driver
            .made
            .iter()
            .filter(|method| method.id() == id)
            .count()
    };
    assert_eq!(declares(exchange::Declare::ID), 2);
    assert_eq!(declares(queue::Declare::ID), 2);
}

#[test]
fn a_late_refusal_of_a_binding_that_follows_its_queue_does_not_count() {
    let mut setup = Setup::with([
        queue::Declare::new("q").into(),
        queue::Bind::new("q", "amq.topic", "1").into(),
        queue::Bind::new("q", "amq.topic", "2").into(),
    ]);
    let before = setup.model.clone();
    let mut driver = setup.restore_with(Topology::All, 2);
    setup.accept(&mut driver);
    assert_eq!(driver.calls.len(), 2);
    // The queue is gone. It is declared again before the second binding is answered.
    setup.model.delete_queue(&"q".into());
    setup.refuse(&mut driver, 404);
    driver.step(1, &mut setup.model, &mut setup.book);
    setup.refuse(&mut driver, 404);
    setup.run(&mut driver);
    assert_eq!(skipped(&mut driver), []);
    assert_eq!(setup.model, before);
}

#[test]
fn a_lock_counts_from_its_first_refusal_in_a_row() {
    let old = client_made_name(1);
    let declare = |name: &ShortString| Method::from(queue::Declare::new(name).exclusive(true));
    let mut setup = Setup::with([declare(&old)]);
    let mut driver = setup.restore();
    let mut refuse_for = |driver: &mut Driver, code, time| {
        let until = driver.now + time;
        while driver.now < until {
            let call = &driver.calls[0].1;
            assert_eq!(*call, declare(&old), "after {:?}", until - driver.now);
            setup.refuse(driver, code);
            assert!(driver.pass_time(&setup.book));
        }
    };
    // The delays have grown to 30 s after 31 s, so each refusal is 30 s later than the one before.
    refuse_for(&mut driver, 404, secs(31));
    refuse_for(&mut driver, 405, secs(30));
    refuse_for(&mut driver, 404, secs(30));
    refuse_for(&mut driver, 405, secs(60));
    assert_eq!(driver.calls[0].1, declare(&client_made_name(7)));
}

#[test]
fn a_binding_that_is_not_found_again_is_skipped() {
    let mut setup = Setup::with([
        exchange::Declare::new("x").into(),
        queue::Declare::new("q").into(),
        queue::Bind::new("q", "x", "k").into(),
    ]);
    let mut driver = setup.restore();
    let mut refusals = 0;
    while let Some((_, method)) = driver.calls.first() {
        match method.id() == queue::Bind::ID {
            true => {
                refusals += 1;
                setup.refuse(&mut driver, 404);
            }
            false => setup.accept(&mut driver),
        }
    }
    // Once for itself, and once behind each of the two declares.
    assert!((2..=3).contains(&refusals), "{refusals}");
    let binding = "binding of queue \"q\" to exchange \"x\" with key \"k\"".to_owned();
    assert_eq!(skipped(&mut driver), [(binding, 404)]);
    assert!(driver.restoration.is_through(driver.now));
}

#[test]
fn a_binding_between_names_of_others_is_skipped_when_it_is_not_found() {
    let mut setup = Setup::default();
    let bind = queue::Bind::new("foreign", "amq.topic", "k").into();
    let reply = Reply::Method(queue::BindOk::default().into());
    setup.book.record(1, &bind, &reply);
    let mut driver = setup.restore();
    setup.run(&mut driver);
    assert_eq!(driver.made.len(), 1);
    assert_eq!(skipped(&mut driver).len(), 1);
    // A foreign queue that is locked is not declared, for the program has not declared it.
    let mut driver = setup.restore();
    setup.refuse(&mut driver, 405);
    assert_eq!(skipped(&mut driver).len(), 1);
    assert!(!driver.pass_time(&setup.book));
}

#[test]
fn a_lock_that_only_a_binding_reports_puts_the_queue_aside() {
    let mut setup = Setup::with([
        queue::Declare::new("q").exclusive(true).into(),
        queue::Bind::new("q", "amq.topic", "k").into(),
    ]);
    let mut driver = setup.restore();
    setup.accept(&mut driver);
    setup.refuse(&mut driver, 405);
    assert!(driver.restoration.is_through(driver.now));
    assert!(driver.pass_time(&setup.book));
    setup.run(&mut driver);
    let ids: Vec<String> = driver
        .made
        .iter()
        .map(|method| method.id().to_string())
        .collect();
    assert_eq!(
        ids,
        ["queue.declare", "queue.bind", "queue.declare", "queue.bind"]
    );
}

#[test]
fn an_entry_that_has_cost_a_connection_is_tried_alone_and_then_left_out() {
    let all = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut setup = Setup::with(queues(&all));
    let lost = close(541, "internal error", queue::Declare::default());
    let driver = setup.restore();
    assert_eq!(driver.calls.len(), 4);
    driver.restoration.lost(&lost, &mut setup.book);
    for entity in all[..4].iter().map(|name| queue_entity(name)) {
        assert!(!setup.book.strikes(&entity).unwrap().is_out());
    }

    // The first of the four suspects is alone, and innocent. The second one is not.
    let mut driver = setup.restore();
    assert_eq!(driver.calls.len(), 1);
    setup.accept(&mut driver);
    assert_eq!(driver.calls.len(), 1);
    driver.restoration.lost(&lost, &mut setup.book);
    assert!(setup.book.strikes(&queue_entity("b")).unwrap().is_out());

    let mut driver = setup.restore();
    setup.run(&mut driver);
    assert_eq!(skipped(&mut driver), [("queue \"b\"".to_owned(), 541)]);
    assert!(driver.restoration.is_through(driver.now));
    assert!(setup.book.strikes(&queue_entity("c")).is_none());
    // It is left out from now on, until the program declares it itself.
    let mut driver = setup.restore();
    setup.run(&mut driver);
    assert_eq!(driver.made.len(), 7);
    let declare = queue::Declare::new("b").into();
    call(&mut setup.book, &mut setup.model, 1, false, declare);
    let mut driver = setup.restore();
    setup.run(&mut driver);
    assert_eq!(driver.made.len(), 8);
}

#[test]
fn the_bindings_of_a_queue_that_is_left_out_are_tried_and_reported() {
    let mut setup = Setup::with([
        queue::Declare::new("q").into(),
        queue::Bind::new("q", "amq.topic", "k").into(),
    ]);
    let lost = close(541, "internal error", queue::Declare::default());
    for _ in 0..2 {
        let driver = setup.restore();
        driver.restoration.lost(&lost, &mut setup.book);
    }
    setup.model.delete_queue(&"q".into());
    let mut driver = setup.restore();
    setup.run(&mut driver);
    let bind: Method = queue::Bind::new("q", "amq.topic", "k").into();
    assert!(driver.made.iter().all(|method| *method == bind));
    let skipped = skipped(&mut driver);
    let binding = "binding of queue \"q\" to exchange \"amq.topic\" with key \"k\"".to_owned();
    assert_eq!(skipped, [("queue \"q\"".to_owned(), 541), (binding, 404)]);
    // A consumer that does not find it changes nothing.
    let restoration = &mut driver.restoration;
    restoration.restore_queue(&"q".into(), &setup.book, driver.now);
    setup.run(&mut driver);
    assert!(driver.restoration.is_through(driver.now));
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
}

#[test]
fn a_queue_that_is_deleted_while_its_new_name_is_declared_is_not_renamed() {
    let old = client_made_name(1);
    let mut setup = Setup::with([queue::Declare::new(&old).exclusive(true).into()]);
    let mut driver = setup.restore();
    while driver.made.last()
        != Some(
            &queue::Declare::new(client_made_name(7))
                .exclusive(true)
                .into(),
        )
    {
        if !driver.calls.is_empty() {
            setup.refuse(&mut driver, 405);
        }
        assert!(driver.pass_time(&setup.book));
    }
    let delete = queue::Delete::new(&old).into();
    call(&mut setup.book, &mut setup.model, 1, false, delete);
    setup.accept(&mut driver);
    assert_eq!(driver.restoration.take_report().renamed, []);
    assert_eq!(setup.book.len(), 0);
    assert!(!driver.pass_time(&setup.book));
}

#[test]
fn only_a_close_by_the_broker_that_names_the_method_is_a_strike() {
    let declare = queue::Declare::default();
    let of_program = CloseReason::new(ClosedBy::Application, 541, "", Some(queue::Declare::ID));
    for lost in [
        close(541, "", queue::Bind::default()),
        close(541, "metadata store operation timed out", declare.clone()),
        close(320, "Timeout", declare),
        Termination::Closed(CloseReason::new(ClosedBy::Broker, 541, "", None)),
        Termination::Closed(of_program),
        Termination::EndOfStream,
    ] {
        let mut setup = Setup::with(queues(&["q"]));
        let driver = setup.restore();
        driver.restoration.lost(&lost, &mut setup.book);
        let strikes = setup.book.strikes(&queue_entity("q"));
        assert!(strikes.is_none(), "{lost:?}");
    }
}

#[test]
fn a_culprit_of_the_restoration_has_a_call_under_way() {
    let mut setup = Setup::with(queues(&["q"]));
    let mut driver = setup.restore();
    let declare = refusal(541, &queue::Declare::default().into());
    let open = refusal(541, &connection::Open::default().into());
    assert!(driver.restoration.is_culprit(&declare));
    assert!(!driver.restoration.is_culprit(&open));
    setup.accept(&mut driver);
    assert!(!driver.restoration.is_culprit(&declare));
}

#[test]
fn a_call_without_an_answer_holds_up_only_its_lane() {
    let mut setup = Setup::with([
        queue::Declare::new("a").into(),
        queue::Declare::new("b").into(),
        queue::Bind::new("a", "amq.topic", "k").into(),
        queue::Bind::new("b", "amq.topic", "k").into(),
    ]);
    let mut driver = setup.restore_with(Topology::All, 2);
    // Queue b is declared, and the bindings wait for queue a.
    driver.step(1, &mut setup.model, &mut setup.book);
    assert_eq!(driver.calls.len(), 1);
    let since = driver.now;
    driver.pass_time(&setup.book);
    assert_eq!(driver.now - since, HANG_TIME);
    assert_eq!(driver.calls.len(), 2);
    driver.step(1, &mut setup.model, &mut setup.book);
    assert!(driver.restoration.is_through(driver.now));
    let waiting = driver.restoration.waiting(driver.now);
    assert_eq!(names(&waiting), ["queue \"a\""]);
    // The late answer brings the binding.
    setup.run(&mut driver);
    let bind = queue::Bind::new("a", "amq.topic", "k");
    assert_eq!(driver.made.last(), Some(&bind.into()));
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
}

#[test]
fn while_all_lanes_hang_the_rest_waits_with_them() {
    let mut setup = Setup::with(queues(&["a", "b", "c"]));
    let mut driver = setup.restore_with(Topology::All, 2);
    assert!(!driver.restoration.is_through(driver.now));
    driver.pass_time(&setup.book);
    assert!(driver.restoration.is_through(driver.now));
    assert_eq!(driver.restoration.waiting(driver.now).count, 3);
    assert_eq!(driver.restoration.poll_timeout(driver.now), None);
    setup.run(&mut driver);
    assert_eq!(driver.made.len(), 3);
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
}

#[test]
fn a_repetition_asks_for_a_lane_when_it_is_due() {
    let mut setup = Setup::with(queues(&["q"]));
    let mut driver = setup.restore_with(Topology::All, 1);
    setup.refuse(&mut driver, 404);
    driver.restoration.released(0);
    assert!(!driver.restoration.needs_lane(driver.now));
    driver.pass_time(&setup.book);
    assert!(driver.restoration.needs_lane(driver.now));
    assert_eq!(driver.restoration.poll_timeout(driver.now), None);
    assert_eq!(driver.calls, []);
    driver.restoration.opened(0);
    assert!(!driver.restoration.needs_lane(driver.now));
    setup.run(&mut driver);
    assert_eq!(driver.made.len(), 2);
}

#[test]
fn a_new_queue_is_reported_where_the_reply_tells() {
    let declare = queue::Declare::new;
    let mut setup = Setup::with([
        declare("exclusive").exclusive(true).into(),
        declare("durable").into(),
        declare("transient").durable(false).into(),
        declare("transient with messages").durable(false).into(),
        declare("used").auto_delete(true).into(),
        declare("unused").auto_delete(true).into(),
        basic::Consume::new("used").consumer_tag("a").into(),
    ]);
    let mut driver = setup.restore_with(Topology::All, 1);
    while let Some((_, Method::QueueDeclare(declare))) = driver.calls.first() {
        let name = declare.queue.clone();
        let count = u32::from(name == "transient with messages");
        let reply = queue::DeclareOk::default().queue(name).message_count(count);
        driver.answer(0, Ok(reply.into()), &mut setup.book);
    }
    let recreated = driver.restoration.take_report().recreated;
    assert_eq!(recreated.first, ["exclusive", "transient", "used"]);
}

#[test]
fn a_queue_that_a_consumer_does_not_find_is_restored_with_its_bindings() {
    let mut setup = Setup::with([
        queue::Declare::new("q").auto_delete(true).into(),
        queue::Bind::new("q", "amq.topic", "k").into(),
    ]);
    let before = setup.model.clone();
    let mut driver = setup.restore();
    setup.run(&mut driver);
    setup.model.delete_queue(&"q".into());
    let restoration = &mut driver.restoration;
    restoration.restore_queue(&"q".into(), &setup.book, driver.now);
    restoration.restore_queue(&"foreign".into(), &setup.book, driver.now);
    assert_eq!(restoration.waiting(driver.now).count, 1);
    setup.run(&mut driver);
    assert_eq!(setup.model, before);
}

#[test]
fn later_reports_have_the_outcomes_of_entries_that_were_waiting() {
    let declare = |name: &str| queue::Declare::new(name).exclusive(true).into();
    let mut setup = Setup::with([declare("a"), declare("b")]);
    let mut driver = setup.restore_with(Topology::All, 1);
    setup.refuse(&mut driver, 405);
    setup.run(&mut driver);
    let (first, waiting) = driver.restoration.first_report(driver.now);
    assert_eq!(waiting.first, [queue_entity("a")]);
    assert_eq!(
        (first.recreated.first, first.restored.count),
        (vec!["b".into()], 0)
    );
    driver.pass_time(&setup.book);
    setup.run(&mut driver);
    let later = driver.restoration.take_report();
    assert_eq!(later.restored.first, [queue_entity("a")]);
    assert_eq!(later.recreated.first, ["a"]);
    assert_eq!(driver.restoration.take_declared(), ["b", "a"]);
    // A repetition for a consumer is no news.
    let restoration = &mut driver.restoration;
    assert!(restoration.restore_queue(&"b".into(), &setup.book, driver.now));
    setup.run(&mut driver);
    assert!(driver.restoration.take_report().is_empty());
}

#[test]
fn without_topology_nothing_is_declared() {
    let mut setup = Setup::with(queues(&["q"]));
    let mut driver = setup.restore_with(Topology::Off, 4);
    driver
        .restoration
        .restore_queue(&"q".into(), &setup.book, driver.now);
    driver.make_calls(&setup.book);
    assert_eq!(driver.made, []);
    assert!(driver.restoration.is_through(driver.now));
    assert!(!driver.restoration.needs_lane(driver.now));
}

#[test]
fn a_report_is_bounded_and_its_count_is_not() {
    let count = 2 * report::LISTED_MAX;
    let declares = (0..count).map(|number| queue::Declare::new(number.to_string()).into());
    let mut setup = Setup::with(declares);
    let mut driver = setup.restore();
    while !driver.calls.is_empty() {
        setup.refuse(&mut driver, 403);
    }
    let skipped = driver.restoration.take_report().skipped;
    assert_eq!(
        (skipped.count, skipped.first.len()),
        (count, report::LISTED_MAX)
    );
    assert_eq!(driver.restoration.take_report().skipped.count, 0);
}

#[test]
fn a_full_book_is_restored_with_one_call_for_each_entry() {
    let mut book = Book::default();
    let bind_ok = Reply::Method(queue::BindOk::default().into());
    for number in 0..50_000 {
        let name = ShortString::from(number.to_string());
        let declare = queue::Declare::new(&name);
        let reply = Reply::Method(queue::DeclareOk::default().queue(&name).into());
        book.record(1, &declare.into(), &reply);
        book.record(
            1,
            &queue::Bind::new(&name, "amq.topic", "k").into(),
            &bind_ok,
        );
    }
    let mut driver = Driver::new(&book, settings(Topology::All, LANES_MAX));
    driver.make_calls(&book);
    while let Some((_, method)) = driver.calls.first() {
        let reply = match method {
            Method::QueueDeclare(declare) => {
                queue::DeclareOk::default().queue(&declare.queue).into()
            }
            _ => queue::BindOk::default().into(),
        };
        driver.answer(0, Ok(reply), &mut book);
    }
    assert_eq!(driver.made.len(), 100_000);
    assert!(driver.restoration.is_through(driver.now));
}

#[test]
fn a_book_of_queues_on_a_node_that_is_down_costs_no_quadratic_time() {
    let declares = (0..20_000).map(|number| queue::Declare::new(number.to_string()).into());
    let mut setup = Setup::default();
    for method in declares {
        let Method::QueueDeclare(declare) = &method else {
            continue;
        };
        let reply = Reply::Method(queue::DeclareOk::default().queue(&declare.queue).into());
        setup.book.record(1, &method, &reply);
    }
    let mut driver = setup.restore();
    while !driver.calls.is_empty() {
        setup.refuse(&mut driver, 404);
    }
    assert!(driver.restoration.is_through(driver.now));
    assert_eq!(driver.restoration.waiting(driver.now).count, 20_000);
    driver.pass_time(&setup.book);
    setup.run(&mut driver);
    assert_eq!(driver.restoration.waiting(driver.now).count, 0);
}
