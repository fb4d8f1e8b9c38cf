//! Random topologies: after a loss, the restored broker equals the one before.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::event::Reply;
use super::super::super::methods::{Method, basic, exchange, queue};
use super::super::super::wire::ShortString;
use super::super::book::Book;
use super::super::book::entity::Topology;
use super::model::{Driver, Model, call, settings};

/// An action of the program.
#[derive(Debug, Clone)]
enum Act {
    DeclareExchange(u8, bool, bool),
    DeclareQueue(u8, u8),
    BindExchange(u8, u8, u8),
    BindQueue(u8, u8, u8),
    UnbindExchange(u8, u8, u8),
    UnbindQueue(u8, u8, u8),
    DeleteExchange(u8),
    DeleteQueue(u8),
    Consume(u16, u8, u8),
    Cancel(u16, u8),
    CloseChannel(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let name = || 0u8..4;
    let key = || 0u8..3;
    let channel = || 1u16..3;
    prop_oneof![
        4 => (name(), any::<bool>(), any::<bool>())
            .prop_map(|(name, auto, durable)| Act::DeclareExchange(name, auto, durable)),
        4 => (name(), 0u8..8).prop_map(|(name, flags)| Act::DeclareQueue(name, flags)),
        4 => (0u8..5, 0u8..5, key()).prop_map(|(to, from, key)| Act::BindExchange(to, from, key)),
        5 => (name(), 0u8..5, key()).prop_map(|(to, from, key)| Act::BindQueue(to, from, key)),
        1 => (0u8..5, 0u8..5, key()).prop_map(|(to, from, key)| Act::UnbindExchange(to, from, key)),
        2 => (name(), 0u8..5, key()).prop_map(|(to, from, key)| Act::UnbindQueue(to, from, key)),
        1 => name().prop_map(Act::DeleteExchange),
        1 => name().prop_map(Act::DeleteQueue),
        4 => (channel(), 0u8..3, name())
            .prop_map(|(channel, tag, queue)| Act::Consume(channel, tag, queue)),
        2 => (channel(), 0u8..3).prop_map(|(channel, tag)| Act::Cancel(channel, tag)),
        1 => channel().prop_map(Act::CloseChannel),
    ]
}

fn exchange_name(number: u8) -> ShortString {
    match number {
        4 => "amq.topic".into(),
        number => format!("exchange {number}").into(),
    }
}

fn queue_name(number: u8) -> ShortString {
    format!("queue {number}").into()
}

fn tag_name(number: u8) -> ShortString {
    format!("tag {number}").into()
}

/// The third key is the first one with arguments.
fn key_name(number: u8) -> ShortString {
    (number % 2).to_string().into()
}

impl Act {
    /// Returns the channel and the method. `None`: the channel is closed.
    fn method(&self) -> (u16, Option<Method>) {
        let method = match *self {
            Self::DeclareExchange(name, auto_delete, durable) => {
                let declare = exchange::Declare::new(exchange_name(name));
                declare.auto_delete(auto_delete).durable(durable).into()
            }
            Self::DeclareQueue(name, flags) => queue::Declare::new(queue_name(name))
                .durable(flags & 1 == 0)
                .exclusive(flags & 2 != 0)
                .auto_delete(flags & 4 != 0)
                .into(),
            Self::BindExchange(to, from, key) => {
                let (to, from) = (exchange_name(to), exchange_name(from));
                let mut bind = exchange::Bind::new(to, from, key_name(key));
                if key == 2 {
                    bind = bind.argument("b", 1).argument("a", 2);
                }
                bind.into()
            }
            Self::BindQueue(to, from, key) => {
                let (to, from) = (queue_name(to), exchange_name(from));
                let mut bind = queue::Bind::new(to, from, key_name(key));
                if key == 2 {
                    bind = bind.argument("b", 1).argument("a", 2);
                }
                bind.into()
            }
            Self::UnbindExchange(to, from, key) => {
                let (to, from) = (exchange_name(to), exchange_name(from));
                let mut unbind = exchange::Unbind::new(to, from, key_name(key));
                if key == 2 {
                    unbind = unbind.argument("b", 1).argument("a", 2);
                }
                unbind.into()
            }
            Self::UnbindQueue(to, from, key) => {
                let (to, from) = (queue_name(to), exchange_name(from));
                let mut unbind = queue::Unbind::new(to, from, key_name(key));
                if key == 2 {
                    unbind = unbind.argument("b", 1).argument("a", 2);
                }
                unbind.into()
            }
            Self::DeleteExchange(name) => exchange::Delete::new(exchange_name(name)).into(),
            Self::DeleteQueue(name) => queue::Delete::new(queue_name(name)).into(),
            Self::Consume(channel, tag, queue) => {
                let consume = basic::Consume::new(queue_name(queue)).consumer_tag(tag_name(tag));
                return (channel, Some(consume.into()));
            }
            Self::Cancel(channel, tag) => {
                return (channel, Some(basic::Cancel::new(tag_name(tag)).into()));
            }
            Self::CloseChannel(channel) => return (channel, None),
        };
        (1, Some(method))
    }
}

fn execute(acts: &[(Act, bool)], book: &mut Book, model: &mut Model) {
    for (act, nowait) in acts {
        match act.method() {
            (channel, None) => {
                model.close_channel(channel);
                for (channel, tag) in std::mem::take(&mut model.cancelled) {
                    book.consumer_cancelled(channel, &tag);
                }
                book.channel_closed(channel, None);
            }
            (channel, Some(Method::BasicConsume(consume)))
                if model
                    .consumers
                    .contains_key(&(channel, consume.consumer_tag.clone())) => {}
            (channel, Some(method)) => {
                // A reply directly before: a refused call without a reply is then certainly this
                // one.
                let qos = basic::Qos::default().into();
                let qos_ok = Reply::Method(basic::QosOk::default().into());
                book.record(channel, &qos, &qos_ok);
                call(book, model, channel, *nowait, method);
            }
        }
        let recorded = model.exchanges.len() + model.queues.len() + model.bindings.len();
        assert_eq!(
            book.len(),
            recorded + model.consumers.len(),
            "after {act:?}"
        );
    }
}

/// Starts the consumers again, each on its channel.
fn consume_again(before: &Model, model: &mut Model, driver: &mut Driver, book: &mut Book) {
    for ((channel, tag), name) in &before.consumers {
        let consume = Method::from(basic::Consume::new(name).consumer_tag(tag));
        for _ in 0..1_000 {
            match model.call(*channel, &consume) {
                Ok(_) => break,
                Err(_) => {
                    driver.restoration.restore_queue(name, book, driver.now);
                }
            }
            driver.make_calls(book);
            driver.run(model, book);
            driver.pass_time(book);
            driver.run(model, book);
        }
        assert!(
            model.consumers.contains_key(&(*channel, tag.clone())),
            "{tag}"
        );
    }
}

proptest! {
    // proptest prints a failing case. Without this it would also write a file into the source
    // tree.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_a_loss_the_restored_broker_equals_the_one_before(
        acts in vec((act(), any::<bool>()), 0..60),
        lanes in 1usize..5,
        answers in vec(0usize..4, 0..100),
        fault in 0u8..3,
    ) {
        let (mut book, mut model) = (Book::default(), Model::default());
        execute(&acts, &mut book, &mut model);
        let before = model.clone();
        model.lose();
        model.clean_up();
        match fault {
            0 => {}
            1 => model.restart(),
            _ => model = Model::default(),
        }
        model.cancelled.clear();
        book.connection_lost();
        let mut driver = Driver::new(&book, settings(Topology::All, lanes));
        driver.make_calls(&book);
        for answer in answers {
            if !driver.calls.is_empty() {
                driver.step(answer % driver.calls.len(), &mut model, &mut book);
            }
        }
        driver.run(&mut model, &mut book);
        prop_assert!(driver.restoration.is_through(driver.now));
        prop_assert_eq!(driver.restoration.take_report().skipped.count, 0);
        consume_again(&before, &mut model, &mut driver, &mut book);
        prop_assert_eq!(model, before);
    }

    #[test]
    fn the_late_end_of_the_old_connection_costs_no_entry(
        acts in vec((act(), any::<bool>()), 0..60),
        lanes in 1usize..5,
        answers in vec(0usize..4, 0..100),
        noticed_at in 0usize..60,
    ) {
        let (mut book, mut model) = (Book::default(), Model::default());
        execute(&acts, &mut book, &mut model);
        let before = model.clone();
        model.lose();
        book.connection_lost();
        let mut driver = Driver::new(&book, settings(Topology::All, lanes));
        driver.make_calls(&book);
        for (step, answer) in answers.into_iter().enumerate() {
            if step == noticed_at {
                model.clean_up();
            }
            if !driver.calls.is_empty() {
                driver.step(answer % driver.calls.len(), &mut model, &mut book);
            }
        }
        driver.run(&mut model, &mut book);
        model.clean_up();
        while driver.pass_time(&book) {
            driver.run(&mut model, &mut book);
        }
        prop_assert!(driver.restoration.is_through(driver.now));
        prop_assert_eq!(driver.restoration.take_report().skipped.count, 0);
        consume_again(&before, &mut model, &mut driver, &mut book);
        prop_assert_eq!(model, before);
    }
}
