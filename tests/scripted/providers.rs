//! Providers of credentials: each attempt to connect asks anew. Providers that are slow, fail,
//! panic, or use cony themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use cony::{
    BlockingConnection, CancellationToken, ConnectError, ConnectionParameters, Credentials, Error,
    Recovery, RecoveryEvent, Result, Stage,
};

use crate::common::dispatch_until;
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, Tune, Wire, args, close, parameters, play, signal};
use crate::support::{expect_error, until};

/// Longer than a test may take.
const HOUR: Duration = Duration::from_secs(3600);

type Provide = fn(usize) -> Result<Credentials>;

/// Sets a provider, which gets the number of its calls before.
fn with(
    parameters: ConnectionParameters,
    provide: impl Fn(usize) -> Result<Credentials> + Send + Sync + 'static,
) -> ConnectionParameters {
    let calls = AtomicUsize::new(0);
    parameters.credentials(Credentials::provider(move || {
        provide(calls.fetch_add(1, Ordering::Relaxed))
    }))
}

fn recovering(parameters: ConnectionParameters) -> ConnectionParameters {
    parameters.recovery(Recovery::new().max_delay(Duration::from_millis(10)))
}

/// Returns a user and a password with this number.
fn rotated(number: usize) -> Result<Credentials> {
    Ok(Credentials::plain(
        format!("user {number}"),
        format!("hush {number}"),
    ))
}

/// Accepts a connection, whose login must have this number.
fn expect_login(listener: &Listener, number: usize) -> Wire {
    let mut wire = listener.accept();
    let login = String::from_utf8(wire.expect_start_ok()).unwrap();
    assert_eq!(login, format!("\0user {number}\0hush {number}"));
    wire
}

fn accept_login(listener: &Listener, number: usize) -> Wire {
    let mut wire = expect_login(listener, number);
    wire.tune(Tune::default());
    wire.send(0, CONNECTION_OPEN_OK, args().short(""));
    wire
}

fn refuse_login(listener: &Listener, number: usize, code: u16) {
    let mut wire = expect_login(listener, number);
    wire.send(
        0,
        CONNECTION_CLOSE,
        close(code, "as the test wants it", (0, 0)),
    );
    wire.await_close_ok();
}

/// Sends the error of each failed attempt to the returned receiver, while callbacks run, and `None`
/// after the outage.
fn failures_of(connection: &BlockingConnection) -> Receiver<Option<Error>> {
    let (note, noted) = channel();
    connection.add_on_recovery_callback(move |_, event| {
        match event {
            RecoveryEvent::AttemptFailed(outage) => note.send(outage.last).unwrap(),
            RecoveryEvent::Recovered(_) => note.send(None).unwrap(),
            _ => {}
        }
        Ok(())
    });
    noted
}

/// Credentials that hold a value until they are dropped.
fn holding(value: Arc<()>) -> Credentials {
    let credentials = Credentials::plain("late", "hush");
    let last = Credentials::custom(move || -> Unused { unreachable!("{value:?}") });
    credentials.or(last)
}

struct Unused;

impl cony::Mechanism for Unused {
    fn name(&self) -> &'static str {
        "UNUSED"
    }

    fn respond(&mut self, _: Option<&[u8]>) -> Option<cony::Secret> {
        None
    }
}

/// A provider whose calls hang until this is dropped. Each then returns credentials that hold the
/// value, and the test fails if they are used.
struct Hanging {
    began: Receiver<()>,
    release: Sender<()>,
    value: Weak<()>,
    credentials: Credentials,
}

impl Hanging {
    /// `first` is the answer to the first call, which does not hang.
    fn new(first: Option<Credentials>) -> Self {
        let (release, released) = channel::<()>();
        let (begin, began) = channel();
        let value = Arc::new(());
        let weak = Arc::downgrade(&value);
        let first = Mutex::new(first);
        // Taken by the call that hangs, so that the provider does not hold the value.
        let held = Mutex::new(Some((released, value)));
        let credentials = Credentials::provider(move || {
            if let Some(first) = first.lock().unwrap().take() {
                return Ok(first);
            }
            let taken = held.lock().unwrap().take();
            let (released, value) = taken.ok_or_else(|| Error::other("called again"))?;
            begin.send(()).unwrap();
            // Disconnected when the test releases the call.
            assert!(released.recv().is_err());
            Ok(holding(value))
        });
        Self {
            began,
            release,
            value: weak,
            credentials,
        }
    }

    /// Lets the call return, whose credentials must be dropped.
    fn release(self) {
        assert!(self.value.upgrade().is_some(), "the call has returned");
        drop(self.release);
        until("the end of the credentials", || {
            self.value.strong_count() == 0
        });
    }
}

#[test]
fn each_attempt_of_an_opening_asks_the_provider() {
    play(
        |listener| {
            refuse_login(listener, 0, 320);
            refuse_login(listener, 1, 320);
            accept_login(listener, 2).finish();
        },
        |parameters| {
            let parameters = with(parameters, rotated)
                .connection_attempts(3)
                .retry_delay(Duration::ZERO);
            let connection = BlockingConnection::open(parameters).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn each_attempt_of_recovery_asks_the_provider_also_after_a_refusal_and_a_new_secret() {
    let (lose, is_to_lose) = signal();
    play(
        move |listener| {
            let mut wire = accept_login(listener, 0);
            wire.expect(0, CONNECTION_UPDATE_SECRET);
            wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
            is_to_lose.wait();
            drop(wire);
            refuse_login(listener, 1, 403);
            refuse_login(listener, 2, 403);
            accept_login(listener, 3).finish();
        },
        move |parameters| {
            let parameters = recovering(with(parameters, rotated));
            let connection = BlockingConnection::open(parameters).unwrap();
            connection
                .update_secret("not this one", "it expires")
                .unwrap();
            let failures = failures_of(&connection);
            lose.send(()).unwrap();
            let mut refusals = 0;
            while let Some(error) = dispatch_until(&connection, &failures) {
                assert!(
                    matches!(error, Error::AuthenticationFailed { certain: true, .. }),
                    "{error}"
                );
                refusals += 1;
            }
            assert!(refusals > 0);
            connection.close().unwrap();
        },
    );
}

#[test]
fn an_opening_with_a_provider_that_fails_or_panics_connects_to_no_broker() {
    let panics = |_| -> Result<Credentials> { panic!("as the test wants it") };
    let fails = |_| Err(Error::other("the vault is sealed"));
    let erased = |_| {
        let erased = Credentials::plain("me", "hush");
        erased.erase();
        Ok(erased)
    };
    let providers: [(Provide, _, _); 3] = [
        (fails, "the vault is sealed", true),
        (panics, "it has panicked", true),
        (erased, "erased", false),
    ];
    for (provider, text, is_retryable) in providers {
        let listener = Listener::bind();
        let parameters = with(parameters(listener.port()), provider).connection_attempts(2);
        let outcome = BlockingConnection::open(parameters.retry_delay(Duration::ZERO));
        let error = expect_error!(outcome, Error::ProviderFailed(_));
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.is_retryable(), is_retryable, "{error}");
        listener.expect_no_client();
    }
}

#[test]
fn an_opening_goes_on_after_a_call_that_failed() {
    play(
        |listener| accept_login(listener, 2).finish(),
        |parameters| {
            let provider = |call| match call {
                0 => Err(Error::other("the vault is sealed")),
                1 => panic!("as the test wants it"),
                _ => rotated(call),
            };
            let parameters = with(parameters, provider)
                .connection_attempts(3)
                .retry_delay(Duration::ZERO);
            BlockingConnection::open(parameters)
                .unwrap()
                .close()
                .unwrap();
        },
    );
}

#[test]
fn recovery_goes_on_after_calls_that_fail_and_panic_and_shows_their_errors() {
    let (failed, has_failed) = signal();
    play(
        move |listener| {
            drop(accept_login(listener, 0));
            has_failed.wait();
            accept_login(listener, 3).finish();
        },
        move |parameters| {
            let (step, stepped) = channel::<()>();
            let stepped = Mutex::new(stepped);
            let provider = move |call| match call {
                0 => rotated(0),
                _ => {
                    // Failures in a row would be one event.
                    let _ = stepped.lock().unwrap().recv();
                    match call {
                        1 => Err(Error::other("the vault is sealed")),
                        2 => panic!("as the test wants it"),
                        _ => rotated(call),
                    }
                }
            };
            let parameters = recovering(with(parameters, provider));
            let connection = BlockingConnection::open(parameters).unwrap();
            let failures = failures_of(&connection);
            for text in ["the vault is sealed", "it has panicked"] {
                step.send(()).unwrap();
                let error = dispatch_until(&connection, &failures).unwrap();
                assert!(matches!(error, Error::ProviderFailed(_)), "{error}");
                assert!(error.to_string().contains(text), "{error}");
                let outage = connection.outage().unwrap();
                assert_eq!(outage.last.unwrap().to_string(), error.to_string());
            }
            failed.send(()).unwrap();
            step.send(()).unwrap();
            assert!(dispatch_until(&connection, &failures).is_none());
            connection.close().unwrap();
        },
    );
}

#[test]
fn the_timeout_of_an_opening_ends_the_wait_for_a_provider_and_drops_its_answer() {
    let listener = Listener::bind();
    let hanging = Hanging::new(None);
    let timeout = Duration::from_millis(100);
    let parameters = parameters(listener.port())
        .credentials(hanging.credentials.clone())
        .handshake_timeout(timeout);
    let error = BlockingConnection::open(parameters).unwrap_err();
    let Error::Connect {
        stage: Stage::Credentials,
        cause: ConnectError::TimedOut(after),
        ..
    } = &error
    else {
        panic!("{error:#?}");
    };
    assert_eq!(*after, timeout);
    assert!(error.is_timeout() && error.is_retryable());
    assert!(error.to_string().contains("handshake_timeout"), "{error}");
    hanging.release();
    listener.expect_no_client();
}

#[test]
fn a_cancel_ends_the_wait_for_a_provider_and_drops_its_answer() {
    let listener = Listener::bind();
    let hanging = Hanging::new(None);
    let token = CancellationToken::new();
    let parameters = parameters(listener.port())
        .credentials(hanging.credentials.clone())
        .handshake_timeout(HOUR)
        .connection_attempts(2)
        .cancellation_token(token.clone());
    let opening = std::thread::spawn(|| BlockingConnection::open(parameters));
    hanging.began.recv().unwrap();
    token.cancel();
    expect_error!(
        opening.join().unwrap(),
        Error::OpenCancelled {
            stage: Some(Stage::Credentials),
            ..
        }
    );
    hanging.release();
    listener.expect_no_client();
}

#[test]
fn an_attempt_of_recovery_ends_at_its_deadline_while_the_provider_hangs() {
    play(
        |listener| drop(accept_login(listener, 0)),
        |parameters| {
            let hanging = Hanging::new(Some(rotated(0).unwrap()));
            let parameters = recovering(parameters)
                .credentials(hanging.credentials.clone())
                .handshake_timeout(Duration::from_secs(1));
            let connection = BlockingConnection::open(parameters).unwrap();
            let failures = failures_of(&connection);
            let error = dispatch_until(&connection, &failures).unwrap();
            assert!(error.is_timeout(), "{error}");
            assert!(error.to_string().contains("provider"), "{error}");
            // The next call does not wait for the one that hangs.
            while let Error::Connect { .. } = dispatch_until(&connection, &failures).unwrap() {}
            hanging.release();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_close_ends_recovery_while_the_provider_runs_and_drops_its_answer() {
    let ends: [fn(BlockingConnection); 3] = [
        |connection| connection.close().unwrap(),
        |connection| connection.disconnect(),
        drop,
    ];
    for end in ends {
        let (ended, has_ended) = signal();
        play(
            move |listener| {
                drop(accept_login(listener, 0));
                has_ended.wait_dropped();
                // The answer of the provider connects to no broker.
                listener.expect_no_client();
            },
            move |parameters| {
                let hanging = Hanging::new(Some(rotated(0).unwrap()));
                let parameters = recovering(parameters)
                    .credentials(hanging.credentials.clone())
                    .handshake_timeout(HOUR);
                let connection = BlockingConnection::open(parameters).unwrap();
                hanging.began.recv().unwrap();
                end(connection);
                hanging.release();
                drop(ended);
            },
        );
    }
}

#[test]
fn a_provider_may_open_a_connection_itself() {
    play(
        |listener| {
            for number in 0..2 {
                // The connection of the provider comes first.
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                wire.open_channel(1);
                wire.expect_publish(1);
                wire.finish();
                let mut wire = accept_login(listener, number);
                match number {
                    0 => drop(wire),
                    _ => wire.finish(),
                }
            }
        },
        |parameters| {
            let own = parameters.clone();
            let provider = move |call| {
                let connection = BlockingConnection::open(own.clone())?;
                let channel = connection.channel()?;
                channel.basic_publish("", "audit", "asked")?;
                connection.close()?;
                rotated(call)
            };
            let parameters = recovering(with(parameters, provider));
            let connection = BlockingConnection::open(parameters).unwrap();
            let failures = failures_of(&connection);
            assert!(dispatch_until(&connection, &failures).is_none());
            connection.close().unwrap();
        },
    );
}
