//! connection.update-secret: its replies, its deadline and the order of several updates.

use super::super::errors::Flaw;
use super::super::secret::Secret;
use super::*;

impl Scenario {
    fn update_secret(&mut self, secret: &str, call: u32) -> bool {
        let deadline = self.now + RPC_TIMEOUT;
        let reason = "old".into();
        self.core
            .update_secret(secret.into(), reason, call, deadline)
    }

    /// Returns the secret in the output.
    fn secret_sent(&mut self) -> Option<Secret> {
        let frame = self.core.take_secret_output()?;
        match &methods(frame.as_bytes())[..] {
            [(0, Method::ConnectionUpdateSecret(update))] => {
                assert_eq!(update.reason, "old");
                Some(update.new_secret.clone())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn ok() -> connection::UpdateSecretOk {
    connection::UpdateSecretOk::default()
}

#[test]
fn a_secret_is_sent_apart_from_other_output_and_its_reply_is_reported() {
    let mut scenario = Scenario::new();
    scenario.update_secret("one", 1);
    assert_eq!(scenario.sent(), []);
    assert_eq!(scenario.secret_sent(), Some("one".into()));
    assert_eq!(scenario.events(), []);
    scenario.peer_sends(0, ok());
    assert_eq!(scenario.events(), [Seen::Reply(1, ok().into())]);
    assert_eq!(scenario.secret_sent(), None);
    assert!(!scenario.core.is_reply_awaited());
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn at_most_one_secret_update_is_on_the_wire() {
    let mut scenario = Scenario::new();
    scenario.update_secret("one", 1);
    scenario.update_secret("two", 2);
    assert_eq!(scenario.secret_sent(), Some("one".into()));
    assert_eq!(scenario.secret_sent(), None);
    scenario.peer_sends(0, ok());
    assert_eq!(scenario.secret_sent(), Some("two".into()));
    scenario.peer_sends(0, ok());
    let both = [Seen::Reply(1, ok().into()), Seen::Reply(2, ok().into())];
    assert_eq!(scenario.events(), both);
}

#[test]
fn a_late_reply_is_not_taken_for_that_of_the_next_update() {
    let mut scenario = Scenario::new();
    scenario.update_secret("one", 1);
    assert_eq!(scenario.secret_sent(), Some("one".into()));
    scenario.pass(RPC_TIMEOUT);
    let timed_out = |call| Seen::Failed(call, CallFailure::TimedOut);
    assert_eq!(scenario.events(), [timed_out(1)]);
    scenario.update_secret("two", 2);
    assert_eq!(scenario.secret_sent(), None);
    scenario.peer_sends(0, ok());
    assert_eq!(scenario.events(), []);
    assert_eq!(scenario.secret_sent(), Some("two".into()));
    scenario.peer_sends(0, ok());
    assert_eq!(scenario.events(), [Seen::Reply(2, ok().into())]);
}

#[test]
fn an_update_that_times_out_while_it_waits_is_never_sent() {
    let mut scenario = Scenario::new();
    scenario.update_secret("one", 1);
    scenario.secret_sent();
    scenario.pass(SECOND);
    scenario.update_secret("two", 2);
    scenario.pass(RPC_TIMEOUT);
    let timed_out = |call| Seen::Failed(call, CallFailure::TimedOut);
    assert_eq!(scenario.events(), [timed_out(1), timed_out(2)]);
    scenario.peer_sends(0, ok());
    assert_eq!(scenario.secret_sent(), None);
    // A further reply has no call.
    scenario.peer_sends(0, ok());
    let ended = matches!(
        scenario.events()[..],
        [Seen::Closed(Termination::Protocol(_))]
    );
    assert!(ended);
}

#[test]
fn the_end_of_the_connection_fails_all_updates() {
    let mut scenario = Scenario::new();
    scenario.update_secret("one", 1);
    scenario.update_secret("two", 2);
    scenario.core.ended();
    let closed = |call| Seen::Failed(call, CallFailure::Closed);
    let end = Seen::Closed(Termination::EndOfStream);
    assert_eq!(scenario.events(), [end, closed(1), closed(2)]);
    assert_eq!(scenario.secret_sent(), None);
    assert!(!scenario.update_secret("three", 3));
    assert_eq!(scenario.events(), [closed(3)]);
    assert_eq!(scenario.core.poll_timeout(), None);
}

#[test]
fn after_our_close_no_update_is_sent() {
    let mut scenario = Scenario::new();
    scenario.begin_close(SECOND);
    scenario.sent();
    scenario.update_secret("one", 1);
    assert_eq!(scenario.secret_sent(), None);
    assert_eq!(scenario.events(), [Seen::Failed(1, CallFailure::Closed)]);
}

#[test]
fn an_update_larger_than_a_frame_fails_and_does_not_delay_others() {
    let mut scenario = Scenario::new();
    assert!(!scenario.update_secret(&"x".repeat(FRAME_MAX as usize), 1));
    let [Seen::Failed(1, CallFailure::Encode(error))] = &scenario.events()[..] else {
        panic!("it is too long");
    };
    let limit = FRAME_MAX as usize;
    assert!(matches!(error.flaw, Flaw::TooLong { limit: it, .. } if it == limit));
    assert!(scenario.update_secret("two", 2));
    assert_eq!(scenario.secret_sent(), Some("two".into()));
}
