//! A naive model of the topology in a broker, and of the program's consumers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::super::super::close_reason::{CloseReason, ClosedBy};
use super::super::super::event::Reply;
use super::super::super::methods::{Method, basic, exchange, queue};
use super::super::super::wire::ShortString;
use super::super::book::Book;
use super::super::book::entity::Topology;
use super::super::restoration::{Outcome, Restoration, Settings};

/// Source, whether the destination is a queue, destination, routing key, arguments.
type Binding = (ShortString, bool, ShortString, ShortString, String);

#[derive(Debug, Clone, Default, PartialEq)]
pub(in super::super) struct Model {
    pub(in super::super) exchanges: BTreeMap<ShortString, exchange::Declare>,
    pub(in super::super) queues: BTreeMap<ShortString, queue::Declare>,
    pub(in super::super) bindings: BTreeSet<Binding>,
    /// The queues of the consumers by channel and tag.
    pub(in super::super) consumers: BTreeMap<(u16, ShortString), ShortString>,
    /// The exclusive queues of a lost connection whose end the broker has not noticed.
    pub(in super::super) locked: BTreeSet<ShortString>,
    /// The consumers of that connection.
    pub(in super::super) old_consumers: BTreeMap<(u16, ShortString), ShortString>,
    /// The consumers that the broker has cancelled, and the client does not know yet.
    pub(in super::super) cancelled: Vec<(u16, ShortString)>,
}

impl Model {
    /// Executes a method. The error is the code with which the broker closes the channel.
    pub(in super::super) fn call(&mut self, channel: u16, method: &Method) -> Result<Method, u16> {
        match method.clone() {
            Method::ExchangeDeclare(declare) => self.declare_exchange(declare),
            Method::QueueDeclare(declare) => self.declare_queue(declare),
            Method::ExchangeBind(bind) => {
                let arguments = format!("{:?}", bind.arguments);
                let (source, destination) = (bind.source, bind.destination);
                self.bind((source, false, destination, bind.routing_key, arguments))?;
                Ok(exchange::BindOk::default().into())
            }
            Method::QueueBind(bind) => {
                let arguments = format!("{:?}", bind.arguments);
                let (source, destination) = (bind.exchange, bind.queue);
                self.bind((source, true, destination, bind.routing_key, arguments))?;
                Ok(queue::BindOk::default().into())
            }
            Method::ExchangeUnbind(unbind) => {
                let arguments = format!("{:?}", unbind.arguments);
                let (source, destination) = (unbind.source, unbind.destination);
                self.unbind(&(source, false, destination, unbind.routing_key, arguments));
                Ok(exchange::UnbindOk::default().into())
            }
            Method::QueueUnbind(unbind) => {
                let arguments = format!("{:?}", unbind.arguments);
                let (source, destination) = (unbind.exchange, unbind.queue);
                self.unbind(&(source, true, destination, unbind.routing_key, arguments));
                Ok(queue::UnbindOk::default().into())
            }
            Method::ExchangeDelete(delete) => {
                self.delete_exchange(&delete.exchange);
                Ok(exchange::DeleteOk::default().into())
            }
            Method::QueueDelete(delete) => {
                self.delete_queue(&delete.queue);
                Ok(queue::DeleteOk::default().into())
            }
            Method::BasicConsume(consume) => {
                self.check_queue(&consume.queue)?;
                let key = (channel, consume.consumer_tag.clone());
                assert_eq!(self.consumers.insert(key, consume.queue), None);
                let reply = basic::ConsumeOk::default();
                Ok(reply.consumer_tag(consume.consumer_tag).into())
            }
            Method::BasicCancel(cancel) => {
                self.end_consumer(channel, &cancel.consumer_tag);
                let reply = basic::CancelOk::default();
                Ok(reply.consumer_tag(cancel.consumer_tag).into())
            }
            other => panic!("{other:?}"),
        }
    }

    fn declare_exchange(&mut self, declare: exchange::Declare) -> Result<Method, u16> {
        let declare = declare.nowait(false);
        let name = declare.exchange.clone();
        let existing = self
            .exchanges
            .entry(name)
            .or_insert_with(|| declare.clone());
        match *existing == declare {
            true => Ok(exchange::DeclareOk::default().into()),
            false => Err(406),
        }
    }

    fn declare_queue(&mut self, declare: queue::Declare) -> Result<Method, u16> {
        let declare = declare.nowait(false);
        let name = declare.queue.clone();
        if self.locked.contains(&name) {
            return Err(405);
        }
        let existing = self
            .queues
            .entry(name.clone())
            .or_insert_with(|| declare.clone());
        if *existing != declare {
            return Err(406);
        }
        let consumers = self.consumers.values().filter(|queue| **queue == name);
        let count = u32::try_from(consumers.count()).unwrap();
        let reply = queue::DeclareOk::default().queue(name);
        Ok(reply.consumer_count(count).into())
    }

    fn check_queue(&self, name: &ShortString) -> Result<(), u16> {
        match (self.queues.contains_key(name), self.locked.contains(name)) {
            (false, _) => Err(404),
            (true, true) => Err(405),
            (true, false) => Ok(()),
        }
    }

    fn has_exchange(&self, name: &ShortString) -> bool {
        name.starts_with("amq.") || self.exchanges.contains_key(name)
    }

    fn bind(&mut self, binding: Binding) -> Result<(), u16> {
        let (source, to_queue, destination, ..) = &binding;
        match to_queue {
            true => self.check_queue(destination)?,
            false if !self.has_exchange(destination) => return Err(404),
            false => {}
        }
        if !self.has_exchange(source) {
            return Err(404);
        }
        self.bindings.insert(binding);
        Ok(())
    }

    fn unbind(&mut self, binding: &Binding) {
        if self.bindings.remove(binding) {
            self.delete_if_unbound(&binding.0);
        }
    }

    fn delete_if_unbound(&mut self, name: &ShortString) {
        let is_auto_delete = self
            .exchanges
            .get(name)
            .is_some_and(|declare| declare.auto_delete);
        if is_auto_delete && !self.bindings.iter().any(|(source, ..)| source == name) {
            self.delete_exchange(name);
        }
    }

    pub(in super::super) fn delete_exchange(&mut self, name: &ShortString) {
        self.exchanges.remove(name);
        self.bindings.retain(|(source, ..)| source != name);
        self.remove_bindings_to(false, name);
    }

    pub(in super::super) fn delete_queue(&mut self, name: &ShortString) {
        self.queues.remove(name);
        self.locked.remove(name);
        self.remove_bindings_to(true, name);
        let mut consumers = self.consumers.iter();
        let orphans: Vec<_> = consumers
            .by_ref()
            .filter(|(_, queue)| *queue == name)
            .map(|(key, _)| key.clone())
            .collect();
        self.consumers.retain(|key, _| !orphans.contains(key));
        self.cancelled.extend(orphans);
    }

    fn remove_bindings_to(&mut self, to_queue: bool, name: &ShortString) {
        let is_doomed =
            |(_, kind, destination, ..): &&Binding| *kind == to_queue && destination == name;
        let doomed: Vec<Binding> = self.bindings.iter().filter(is_doomed).cloned().collect();
        for binding in &doomed {
            self.bindings.remove(binding);
        }
        for binding in &doomed {
            self.delete_if_unbound(&binding.0);
        }
    }

    fn end_consumer(&mut self, channel: u16, tag: &ShortString) {
        if let Some(queue) = self.consumers.remove(&(channel, tag.clone())) {
            self.delete_if_unused(&queue);
        }
    }

    fn delete_if_unused(&mut self, name: &ShortString) {
        let is_auto_delete = self
            .queues
            .get(name)
            .is_some_and(|declare| declare.auto_delete);
        let mut others = self.consumers.values().chain(self.old_consumers.values());
        if is_auto_delete && !others.any(|queue| queue == name) {
            self.delete_queue(name);
        }
    }

    /// Ends a channel with its consumers.
    pub(in super::super) fn close_channel(&mut self, channel: u16) {
        let of_channel = self.consumers.keys().filter(|(other, _)| *other == channel);
        for (channel, tag) in of_channel.cloned().collect::<Vec<_>>() {
            self.end_consumer(channel, &tag);
        }
    }

    /// The connection is lost, and the broker has not noticed it yet.
    pub(in super::super) fn lose(&mut self) {
        self.old_consumers = std::mem::take(&mut self.consumers);
        let queues = self.queues.values().filter(|declare| declare.exclusive);
        self.locked = queues.map(|declare| declare.queue.clone()).collect();
    }

    /// The broker notices the end of the lost connection.
    pub(in super::super) fn clean_up(&mut self) {
        let queues: BTreeSet<_> = std::mem::take(&mut self.old_consumers)
            .into_values()
            .collect();
        for queue in queues {
            self.delete_if_unused(&queue);
        }
        for queue in self.locked.clone() {
            self.delete_queue(&queue);
        }
    }

    /// The node restarts: everything that is not durable is gone.
    pub(in super::super) fn restart(&mut self) {
        for name in self.queues.clone().into_keys() {
            if !self.queues[&name].durable {
                self.delete_queue(&name);
            }
        }
        for name in self.exchanges.clone().into_keys() {
            if self
                .exchanges
                .get(&name)
                .is_some_and(|declare| !declare.durable)
            {
                self.delete_exchange(&name);
            }
        }
    }
}

/// Makes a call of the program and records it. Returns whether the broker has accepted it.
pub(in super::super) fn call(
    book: &mut Book,
    model: &mut Model,
    channel: u16,
    nowait: bool,
    method: Method,
) -> bool {
    let mut method = method;
    book.resolve(channel, &mut method);
    if nowait {
        book.record(channel, &method, &Reply::Sent);
    }
    let outcome = model.call(channel, &method);
    match &outcome {
        Ok(reply) if !nowait => drop(book.record(channel, &method, &Reply::Method(reply.clone()))),
        Ok(_) => {}
        Err(_) => {
            model.close_channel(channel);
            book.channel_closed(channel, Some(method.id()));
        }
    }
    for (channel, tag) in std::mem::take(&mut model.cancelled) {
        book.consumer_cancelled(channel, &tag);
    }
    outcome.is_ok()
}

pub(in super::super) fn refusal(code: u16, method: &Method) -> CloseReason {
    CloseReason::new(ClosedBy::Broker, code, "refused", Some(method.id()))
}

pub(in super::super) fn settings(topology: Topology, lanes: usize) -> Settings {
    Settings {
        topology,
        lanes,
        heartbeat: Duration::from_secs(10),
    }
}

/// A driver of a restoration that answers its calls in any order.
pub(in super::super) struct Driver {
    pub(in super::super) restoration: Restoration,
    pub(in super::super) now: Instant,
    /// The calls without an answer.
    pub(in super::super) calls: Vec<(usize, Method)>,
    /// All calls, in their order.
    pub(in super::super) made: Vec<Method>,
}

impl Driver {
    pub(in super::super) fn new(book: &Book, settings: Settings) -> Self {
        let mut restoration = Restoration::new(book, settings);
        for lane in 0..restoration.lanes() {
            restoration.opened(lane);
        }
        Self {
            restoration,
            now: Instant::now(),
            calls: Vec::new(),
            made: Vec::new(),
        }
    }

    /// Makes all calls that are possible now.
    pub(in super::super) fn make_calls(&mut self, book: &Book) {
        while let Some(call) = self.restoration.next(book, self.now, || 7) {
            assert!(self.calls.iter().all(|(lane, _)| *lane != call.lane));
            self.made.push(call.method.clone());
            self.calls.push((call.lane, call.method));
        }
    }

    /// Answers one of the calls, and makes those that follow.
    pub(in super::super) fn answer(
        &mut self,
        index: usize,
        outcome: Result<Method, u16>,
        book: &mut Book,
    ) {
        let (lane, method) = self.calls.remove(index);
        match outcome {
            Ok(reply) => {
                let outcome = Outcome::Replied(&reply);
                self.restoration.done(lane, &outcome, book, self.now);
            }
            Err(code) => {
                let reason = refusal(code, &method);
                let outcome = Outcome::Closed(&reason);
                self.restoration.done(lane, &outcome, book, self.now);
                self.restoration.opened(lane);
            }
        }
        self.make_calls(book);
    }

    /// Lets the model answer one of the calls.
    pub(in super::super) fn step(&mut self, index: usize, model: &mut Model, book: &mut Book) {
        let outcome = model.call(0, &self.calls[index].1);
        self.answer(index, outcome, book);
    }

    /// Lets the model answer all calls, as far as nothing has to wait.
    pub(in super::super) fn run(&mut self, model: &mut Model, book: &mut Book) {
        self.make_calls(book);
        while !self.calls.is_empty() {
            self.step(0, model, book);
        }
    }

    /// Passes the time until the next call, if there is one.
    pub(in super::super) fn pass_time(&mut self, book: &Book) -> bool {
        match self.restoration.poll_timeout(self.now) {
            Some(instant) => {
                self.now = instant;
                self.make_calls(book);
                true
            }
            None => false,
        }
    }
}
