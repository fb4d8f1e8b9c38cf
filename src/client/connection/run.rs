//! The calls in which one thread runs all callbacks of a connection: `run`, `process_data_events`
//! and `sleep`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use super::{BlockingConnection, DEADLINE_GRACE};
use crate::client::channel::EVENTS_PER_TURN_MAX;
use crate::error::Result;
use crate::io::to_program::dispatch_signal::Signal;

/// The number of events of one channel that `process_data_events` dispatches at most. Usually a
/// channel has fewer. There must be a limit, because new events may arrive as fast as they are
/// dispatched.
const EVENTS_PER_CHANNEL_MAX: usize = 100_000;

/// Counts the calls of `run`, and the stops for them.
#[derive(Debug, Default)]
pub(crate) struct Stops(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: usize,
    /// How many stops there were while a `run` was going on.
    stops: u64,
    /// There was a stop while no `run` was going on.
    early: bool,
}

/// A call of `run`, until this is dropped.
struct Running<'a> {
    stops: &'a Stops,
    since: u64,
}

impl Stops {
    /// Begins a `run`. Returns `None` if there was a stop before it.
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
/// Each of these calls runs callbacks in the calling thread: those of the connection, its timers,
/// and those of all of its channels. The call leaves out a channel whose callbacks another thread
/// runs at the moment. A call from inside a callback leaves out the channel of that callback. A
/// [`Consumer`](crate::Consumer) has no callback, so these calls do not touch its deliveries.
///
/// If a channel ends and has no
/// [close callback](crate::BlockingChannel::add_on_close_callback), the call ends with that error.
/// The same holds for a consumer that the broker cancels, if its channel has no
/// [cancel callback](crate::BlockingChannel::add_on_cancel_callback).
impl BlockingConnection {
    /// Runs callbacks until [`stop`](Self::stop) is called or the connection has ended. There is no
    /// time limit. To run callbacks for a limited time, call
    /// [`process_data_events`](Self::process_data_events) or [`sleep`](Self::sleep).
    ///
    /// Returns `Ok` after a stop, and after a close by this program.
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
    /// The error of a callback. The reason, if the connection ends without a close by this program.
    /// [`ChannelClosed`](crate::Error::ChannelClosed) and
    /// [`ConsumerCancelled`](crate::Error::ConsumerCancelled), if there is no callback for them.
    pub fn run(&self) -> Result<()> {
        let Some(running) = self.inner.stops.enter() else {
            return Ok(());
        };
        let signal = Signal::of_this_thread();
        let _subscription = self.inner.shared.all_subscribers.subscribe(&signal);
        let is_over = || running.is_over();
        while !is_over() {
            // Read first: events from before the end are dispatched before this call returns.
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

    /// Makes [`run`](Self::run) return in all threads. The connection stays open, and its consumers
    /// stay too. You may call this from a callback and from any thread. If no thread is in `run`,
    /// the next `run` returns at once.
    pub fn stop(&self) {
        self.inner.stops.stop();
        self.inner.shared.all_subscribers.notify();
    }

    /// Runs the callbacks for all events that have arrived, and returns. If there is no event,
    /// waits for one, at most for `limit`.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// // Without waiting:
    /// connection.process_data_events(Duration::ZERO)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run). Also the reason if this program has closed the connection.
    pub fn process_data_events(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(limit);
        let signal = Signal::of_this_thread();
        let _subscription = self.inner.shared.all_subscribers.subscribe(&signal);
        loop {
            let over = self.inner.check_open();
            let dispatched = self.dispatch_round(EVENTS_PER_CHANNEL_MAX, &|| false)?;
            over?;
            if self.inner.check_open().is_err() {
                // The connection has ended meanwhile, and the dispatched event may have been its
                // end: another round returns the reason.
                continue;
            }
            if dispatched > 0 || is_past(deadline) {
                return Ok(());
            }
            self.wait(&signal, deadline);
        }
    }

    /// Runs callbacks until `duration` has passed, even if events arrive earlier.
    ///
    /// A program without callbacks can call `std::thread::sleep` instead: the IO thread sends the
    /// heartbeats.
    ///
    /// # Errors
    ///
    /// As [`process_data_events`](Self::process_data_events).
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(duration);
        let signal = Signal::of_this_thread();
        let _subscription = self.inner.shared.all_subscribers.subscribe(&signal);
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

    /// Waits until there are events, a timer is due, or the deadline has passed.
    fn wait(&self, signal: &Signal, deadline: Option<Instant>) {
        let _waiting = self
            .inner
            .shared
            .read_control
            .count_as_waiting_for_delivery();
        signal.wait(earlier(deadline, self.next_turn()));
    }

    /// Returns a receiver for `crossbeam_channel::select!`. It is ready when there may be events
    /// for [`process_data_events`](Self::process_data_events). The receiver is only a signal, of
    /// the type `()`: it does not return the events.
    ///
    /// With it one `select!` can wait for several connections, [consumers](crate::Consumer::ready)
    /// and channels of the program. The receiver may be ready without an event. Its type is from
    /// the crate [`crossbeam_channel`](crate::crossbeam_channel).
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    /// use cony::crossbeam_channel::{after, select};
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
            shared.all_subscribers.add(&signal);
            // There may be events from before this call.
            signal.notify();
            signal
        });
        self.set_timer_deadline();
        signal.receiver()
    }

    /// Runs the callbacks for all events that have arrived, at most `share` of each channel.
    /// Returns their number.
    fn dispatch_round(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let shared = &self.inner.shared;
        if shared.termination().is_some() {
            return self.dispatch_last(share, is_over);
        }
        let mut dispatched = self.dispatch_own(is_over)?;
        // Channels that are listed meanwhile have their turn in the next round.
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

    /// Runs the callbacks of all channels after the end of the connection, which ends them all.
    fn dispatch_last(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        // When the IO thread has ended, each channel has recorded its end.
        self.inner
            .wait_for_io_thread(Instant::now() + DEADLINE_GRACE);
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
    fn a_stop_ends_all_runs_that_go_on_and_an_early_stop_ends_the_next_run() {
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
