//! The password of the user changes while the connection is lost, or a provider has the newest one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cony::{BlockingConnection, ConnectionParameters, Credentials, Error, RecoveryEvent};

use super::{await_end_of_outage, events_of, through};
use crate::support::node::{Node, steady_node};
use crate::support::proxy::{Cut, Proxy};
use crate::support::{exclusive_queue, ready, unique, until};

/// A user of the node. Dropping this deletes it.
struct User<'a> {
    node: &'a Node,
    name: String,
}

impl<'a> User<'a> {
    fn add(node: &'a Node, password: &str) -> Self {
        let name = unique("user");
        node.rabbitmqctl(&["add_user", &name, password]);
        node.rabbitmqctl(&["set_permissions", &name, ".*", ".*", ".*"]);
        Self { node, name }
    }

    fn set_password(&self, password: &str) {
        self.node
            .rabbitmqctl(&["change_password", &self.name, password]);
    }

    fn through(&self, proxy: &Proxy, password: &str) -> ConnectionParameters {
        through(proxy).credentials(Credentials::plain(&self.name, password))
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.node.rabbitmqctl(&["delete_user", &self.name]);
    }
}

fn assert_refused(error: Option<&Error>) {
    let is_refusal = matches!(
        error,
        Some(Error::AuthenticationFailed { certain: true, .. })
    );
    assert!(is_refusal, "{error:?}");
}

#[test]
fn a_login_that_is_refused_for_a_time_is_tried_until_it_is_accepted() {
    let node = steady_node();
    let user = User::add(node, "first");
    let proxy = Proxy::before(node.port());
    let connection = BlockingConnection::open(user.through(&proxy, "first")).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    user.set_password("second");
    // A new password does not end a connection that is open.
    assert_eq!(ready(&channel, &queue), 0);
    proxy.cut(Cut::Reset);
    until("refusals", || connection.stats().recovery_attempts >= 4);
    user.set_password("first");
    let taken = await_end_of_outage(&connection, &events);
    let [
        RecoveryEvent::Lost(_),
        RecoveryEvent::AttemptFailed(failed),
        RecoveryEvent::Recovered(_),
    ] = &taken[..]
    else {
        panic!("{taken:?}");
    };
    assert_refused(failed.last.as_ref());
    assert_eq!(ready(&channel, &queue), 0);
    connection.close().unwrap();
}

/// The user and the password that a provider returns. The clones are the same login.
#[derive(Clone)]
struct Login(Arc<Mutex<(String, String)>>);

impl Login {
    fn new(user: &User<'_>, password: &str) -> Self {
        Self(Arc::new(Mutex::new((user.name.clone(), password.into()))))
    }

    fn set(&self, user: &User<'_>, password: &str) {
        *self.0.lock().unwrap() = (user.name.clone(), password.into());
    }

    fn provider(&self) -> Credentials {
        let login = self.clone();
        Credentials::provider(move || {
            let (user, password) = &*login.0.lock().unwrap();
            Ok(Credentials::plain(user, password))
        })
    }
}

#[test]
fn a_provider_gives_the_password_that_has_changed_while_the_connection_was_open() {
    let node = steady_node();
    let user = User::add(node, "first");
    let login = Login::new(&user, "first");
    let proxy = Proxy::before(node.port());
    let parameters = through(&proxy).credentials(login.provider());
    let connection = BlockingConnection::open(parameters).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    user.set_password("second");
    assert_eq!(ready(&channel, &queue), 0);
    proxy.cut(Cut::Reset);
    // The provider still has the old password.
    until("refusals", || connection.stats().recovery_attempts >= 2);
    login.set(&user, "second");
    let taken = await_end_of_outage(&connection, &events);
    let [
        RecoveryEvent::Lost(_),
        RecoveryEvent::AttemptFailed(failed),
        RecoveryEvent::Recovered(_),
    ] = &taken[..]
    else {
        panic!("{taken:?}");
    };
    assert_refused(failed.last.as_ref());
    assert_eq!(ready(&channel, &queue), 0);
    connection.close().unwrap();
}

#[test]
fn a_provider_gives_another_user_after_the_deletion_of_the_old_one() {
    let node = steady_node();
    let [old, new] = ["first", "second"].map(|password| User::add(node, password));
    let login = Login::new(&old, "first");
    let proxy = Proxy::before(node.port());
    let parameters = through(&proxy).credentials(login.provider());
    let connection = BlockingConnection::open(parameters).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let consumer = channel.consume(&queue).unwrap();
    login.set(&new, "second");
    // The broker closes the connections of the user.
    drop(old);
    until("the end of the outage", || {
        connection.stats().recoveries == 1
    });
    channel.basic_publish("", &queue, "after").unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    assert_eq!(delivery.text().unwrap(), "after");
    delivery.ack().unwrap();
    connection.close().unwrap();
}

#[test]
#[ignore = "a login is refused for 15 s before recovery gives up"]
fn a_login_that_stays_refused_ends_the_connection() {
    let node = steady_node();
    let user = User::add(node, "first");
    let proxy = Proxy::before(node.port());
    let connection = BlockingConnection::open(user.through(&proxy, "first")).unwrap();
    let events = events_of(&connection);
    let channel = connection.channel().unwrap();
    let consumer = channel.consume(exclusive_queue(&channel)).unwrap();
    user.set_password("second");
    proxy.cut(Cut::Reset);
    let end = consumer.recv().unwrap_err();
    let Error::RecoveryFailed { last, attempts, .. } = &end else {
        panic!("{end}");
    };
    assert_refused(last.as_deref());
    assert!(*attempts >= 5, "{end}");
    let reason = connection.wait_closed();
    assert_eq!(reason.to_string(), end.to_string());
    loop {
        // Dispatching returns the reason of the end when there is no other event left.
        match connection.process_data_events(Duration::ZERO) {
            Ok(()) => {}
            Err(error) => break assert_eq!(error.to_string(), end.to_string()),
        }
    }
    let last = events.try_iter().last();
    let Some(RecoveryEvent::GaveUp(error)) = last else {
        panic!("{last:?}");
    };
    assert_eq!(error.to_string(), end.to_string());
}
