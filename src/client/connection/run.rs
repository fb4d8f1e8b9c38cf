//! One thread that serves a whole connection: `run` and its relatives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::{BlockingConnection, DEADLINE_GRACE};
use crate::client::channel::EVENTS_PER_TURN_MAX;
use crate::error::Result;
use crate::io::to_program::dispatch_signal::Signal;

/// As good as all that one channel has. Not quite, for it may have more all the time.
const EVENTS_PER_CHANNEL_MAX: usize = 100_000;

/// Who runs, and who is to stop.
#[derive(Debug, Default)]
pub(crate) struct Stops(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: usize,
    /// How often those that ran were stopped.
    stops: u64,
    /// A stop came before anybody ran.
    early: bool,
}

/// A `run` that goes on, for as long as this lives.
struct Running<'a> {
    stops: &'a Stops,
    since: u64,
}

impl Stops {
    /// `None`: it is stopped before it has begun.
    fn enter(&self) -> Option<Running<'_>> {
        let mut counts = self.0.lock();
        if std::mem::take(&mut counts.early) {
            return None;
        }
        counts.running += 1;
        Some(Running {
            stops: self,
            since: counts.stops,
        })
    }

    fn stop(&self) {
        let mut counts = self.0.lock();
        match counts.running {
            0 => counts.early = true,
            _ => counts.stops += 1,
        }
    }
}

impl Running<'_> {
    fn is_over(&self) -> bool {
        self.stops.0.lock().stops != self.since
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.stops.0.lock().running -= 1;
    }
}

/// # One thread for the whole connection
///
/// Each of these runs the callbacks of every channel of the connection and of the
/// connection itself, in the calling thread; what another thread dispatches at the moment,
/// and what a callback is running of right now, is left out. Consumers that are read like an
/// iterator are not theirs.
///
/// A channel that ends, or a consumer that the broker cancels, is told to
/// [those who listen](crate::BlockingChannel::add_on_close_callback); when nobody does, the
/// dispatching call ends with that error.
impl BlockingConnection {
    /// Runs callbacks until [`stop`](Self::stop) is called or the connection is over.
    ///
    /// Returns Ok after a stop, and after a close by this program.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// connection.add_timeout(Duration::from_millis(5), |connection| {
    ///     connection.stop();
    ///     Ok(())
    /// });
    /// connection.run()?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A callback's own error; the reason, if the connection ends otherwise;
    /// [`ChannelClosed`](crate::Error::ChannelClosed) and
    /// [`ConsumerCancelled`](crate::Error::ConsumerCancelled), if nobody listens for them.
    pub fn run(&self) -> Result<()> {
        let Some(running) = self.inner.stops.enter() else {
            return Ok(());
        };
        let signal = Signal::of_this_thread();
        let _watch = self.inner.shared.anything.watch(&signal);
        let is_over = || running.is_over();
        while !is_over() {
            // What came before the end is dispatched after it.
            let reason = self.close_reason();
            let dispatched = self.dispatch_round(EVENTS_PER_TURN_MAX, &is_over)?;
            match reason {
                _ if dispatched > 0 => {}
                Some(reason) if reason.is_of_others() => return Err(reason),
                Some(_) => return Ok(()),
                None if is_over() || self.is_closed() => {}
                None => self.wait(&signal, None),
            }
        }
        Ok(())
    }

    /// Makes [`run`](Self::run) return, in whichever threads it goes on: from a callback or
    /// from any thread. Before a `run`, it makes that one return at once.
    pub fn stop(&self) {
        self.inner.stops.stop();
        self.inner.shared.anything.ring();
    }

    /// Runs the callbacks for all that has come. If nothing has, waits for something, at most
    /// for `limit`.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// // What has come by now:
    /// connection.process_data_events(Duration::ZERO)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run); and the reason also when this program has closed the
    /// connection.
    pub fn process_data_events(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(limit);
        let signal = Signal::of_this_thread();
        let _watch = self.inner.shared.anything.watch(&signal);
        loop {
            let over = self.inner.check_open();
            let dispatched = self.dispatch_round(EVENTS_PER_CHANNEL_MAX, &|| false)?;
            over?;
            if self.inner.check_open().is_err() {
                // It has ended meanwhile, and what was dispatched may have been just that.
                continue;
            }
            if dispatched > 0 || is_past(deadline) {
                return Ok(());
            }
            self.wait(&signal, deadline);
        }
    }

    /// Runs callbacks for `duration`. Plain `std::thread::sleep` is as good for the
    /// connection, which needs nobody to keep it alive; but it runs no callbacks.
    ///
    /// # Errors
    ///
    /// As [`process_data_events`](Self::process_data_events).
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(duration);
        let signal = Signal::of_this_thread();
        let _watch = self.inner.shared.anything.watch(&signal);
        loop {
            let over = self.inner.check_open();
            let dispatched = self.dispatch_round(EVENTS_PER_TURN_MAX, &|| is_past(deadline))?;
            over?;
            if is_past(deadline) {
                return Ok(());
            }
            if dispatched == 0 {
                self.wait(&signal, deadline);
            }
        }
    }

    /// Waits for something to dispatch, or for a timer that is due.
    fn wait(&self, signal: &Signal, deadline: Option<Instant>) {
        let _waiting = self.inner.shared.read_control.wait_for_delivery();
        signal.wait(earlier(deadline, self.next_turn()));
    }

    /// Becomes ready when there is something for
    /// [`process_data_events`](Self::process_data_events): to wait for several connections,
    /// [consumers](crate::Consumer::ready) and channels of the program's own in one
    /// `select!`. It may be ready without.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    /// use crossbeam_channel::{after, select};
    ///
    /// connection.add_timeout(Duration::from_millis(1), |_| Ok(()));
    /// select! {
    ///     recv(connection.ready()) -> _ => connection.process_data_events(Duration::ZERO)?,
    ///     recv(after(Duration::from_secs(5))) -> _ => println!("nothing to do"),
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn ready(&self) -> &Receiver<()> {
        let shared = &self.inner.shared;
        let signal = self.callbacks().ready.get_or_init(|| {
            let signal = Arc::new(Signal::new());
            shared.anything.add(&signal);
            // What had come before.
            signal.ring();
            signal
        });
        self.set_timer_deadline();
        signal.receiver()
    }

    /// Calls back once for all that there is, of each channel `share` events at most. Tells
    /// how many there were.
    fn dispatch_round(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let shared = &self.inner.shared;
        if shared.termination().is_some() {
            return self.dispatch_last(share, is_over);
        }
        let mut dispatched = self.dispatch_own(is_over)?;
        // Those that are listed meanwhile have their turn in the next round.
        for _ in 0..shared.ready_list.len() {
            if is_over() {
                break;
            }
            let Some(id) = shared.ready_list.pop() else {
                break;
            };
            if let Some(channel) = self.inner.channel(id) {
                dispatched += channel.dispatch_some(share, is_over)?;
            }
        }
        Ok(dispatched)
    }

    /// The same after the end of the connection, with which every channel ends.
    fn dispatch_last(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        // By then the IO thread has told the channels as well.
        self.inner.wait_ended(Instant::now() + DEADLINE_GRACE);
        let mut dispatched = 0;
        for channel in self.inner.open_channels() {
            dispatched += channel.dispatch_some(share, is_over)?;
        }
        Ok(dispatched + self.dispatch_own(is_over)?)
    }
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_those_that_run_and_an_early_one_the_next() {
        let stops = Stops::default();
        stops.stop();
        assert!(stops.enter().is_none());
        let (one, other) = (stops.enter().unwrap(), stops.enter().unwrap());
        assert!(!one.is_over());
        stops.stop();
        assert!(one.is_over() && other.is_over());
        drop((one, other));
        assert!(!stops.enter().unwrap().is_over());
    }
}
