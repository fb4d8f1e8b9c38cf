//! A call of the program's provider of credentials, before an opening.
//!
//! The provider may block without a deadline, as the system's resolver may. So it runs on a thread
//! of its own, and the calling thread waits for it in a `Poll` that a cancel wakes. At the deadline
//! or after a cancel the thread is abandoned, and the credentials that it brings later are dropped.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::bounded;

use super::{Cause, Failure, OpenError, Readiness, Target, wake_opening};
use crate::protocol::stage::Stage;

/// Calls `provide`, and waits for its result until the timeout of the opening has passed.
pub(crate) fn call_provider<T, E>(
    target: &Target,
    provide: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, OpenError>
where
    T: Send + 'static,
    E: Error + Send + Sync + 'static,
{
    wait_for(target, provide).map_err(|cause| {
        let host = target.host.clone();
        Failure::new(Stage::Credentials, host, cause).into()
    })
}

fn wait_for<T, E>(
    target: &Target,
    provide: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Cause>
where
    T: Send + 'static,
    E: Error + Send + Sync + 'static,
{
    let deadline = Instant::now() + target.handshake_timeout;
    let mut readiness = Readiness::new(&target.cancellation).map_err(Cause::Io)?;
    let waker = Arc::downgrade(&readiness.waker);
    let (sender, provided) = bounded(1);
    thread::Builder::new()
        .name("cony-provider".into())
        .spawn(move || {
            let result = match catch_unwind(AssertUnwindSafe(provide)) {
                Ok(result) => result.map_err(Into::into),
                // The hook of the program has reported the panic already.
                Err(_) => Err("it has panicked".into()),
            };
            // Fails if the thread was abandoned.
            let _ = sender.send(result);
            wake_opening(&waker);
        })
        .map_err(Cause::Io)?;
    match readiness.receive(&provided, deadline)? {
        Some(result) => result.map_err(Cause::Provider),
        None => Err(Cause::TimedOut(target.handshake_timeout)),
    }
}
