//! The logger of the tests. It keeps every line. For connections with certain names it panics or
//! blocks.

use std::panic::resume_unwind;
use std::sync::{LazyLock, Once};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

/// The name of a connection whose IO thread panics at the first line above level debug.
pub(crate) const DOOMED: &str = "doomed";

/// The name of a connection whose IO thread panics at every line of level debug.
pub(crate) const WORDY: &str = "wordy";

/// The name of a connection whose IO thread blocks for `STALL` at every line above level debug. The
/// time is longer than a peer may be silent with a heartbeat of one second.
pub(crate) const SLUGGISH: &str = "sluggish";

const STALL: Duration = Duration::from_millis(2500);

/// Gets a message whenever the IO thread of a `SLUGGISH` connection begins to block.
pub(crate) static STALLS: LazyLock<Channel> = LazyLock::new(crossbeam_channel::unbounded);

type Channel = (
    crossbeam_channel::Sender<()>,
    crossbeam_channel::Receiver<()>,
);

/// The logger.
pub(crate) struct TestLog;

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl TestLog {
    pub(crate) fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            log::set_logger(&Self).unwrap();
            log::set_max_level(log::LevelFilter::Debug);
        });
    }
}

impl TestLog {
    /// Returns the number of lines that contain `words`.
    pub(crate) fn count(words: &str) -> usize {
        LOGGED
            .lock()
            .iter()
            .filter(|line| line.contains(words))
            .count()
    }
}

impl log::Log for TestLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_io_thread = thread::current().name() == Some("cony-io");
        if record.level() == log::Level::Debug {
            let is_wordy = record.args().to_string().starts_with(WORDY);
            if is_io_thread && is_wordy {
                resume_unwind(Box::new("the logger panics at every line"));
            }
            return;
        }
        LOGGED.lock().push(record.args().to_string());
        if is_io_thread && record.args().to_string().starts_with(DOOMED) {
            // A resumed panic prints no message.
            resume_unwind(Box::new("the logger panics"));
        }
        if is_io_thread && record.args().to_string().starts_with(SLUGGISH) {
            STALLS.0.send(()).unwrap();
            thread::sleep(STALL);
        }
    }

    fn flush(&self) {}
}
