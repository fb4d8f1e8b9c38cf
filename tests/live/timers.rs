//! Timers: `add_timeout`, `remove_timeout`, their order and their errors.

use std::panic;
use std::sync::mpsc;
use std::time::Duration;

use cony::{BlockingConnection, Error};

use crate::support::{PATIENCE, connect, exclusive_queue};

#[test]
fn timers_run_once_and_in_order_of_their_deadlines() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    for (name, milliseconds) in [("late", 20), ("early", 0), ("later", 40)] {
        let note = note.clone();
        connection.add_timeout(Duration::from_millis(milliseconds), move |connection| {
            note.send(name).unwrap();
            if name == "later" {
                connection.stop();
            }
            Ok(())
        });
    }
    connection.run().unwrap();
    connection.process_data_events(Duration::ZERO).unwrap();
    assert_eq!(
        noted.try_iter().collect::<Vec<_>>(),
        ["early", "late", "later"]
    );
    connection.close().unwrap();
}

#[test]
fn a_removed_timer_does_not_run_also_if_another_timer_removes_it() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    let timer = |name| {
        let note = note.clone();
        move |_: &BlockingConnection| {
            note.send(name).unwrap();
            Ok(())
        }
    };
    let removed = connection.add_timeout(Duration::ZERO, timer("removed"));
    assert!(connection.remove_timeout(removed));
    assert!(!connection.remove_timeout(removed));
    let (give, take) = mpsc::channel();
    connection.add_timeout(Duration::ZERO, move |connection| {
        let second = take.recv().unwrap();
        assert!(connection.remove_timeout(second));
        Ok(())
    });
    give.send(connection.add_timeout(Duration::ZERO, timer("second")))
        .unwrap();
    connection.add_timeout(Duration::ZERO, timer("third"));
    connection.process_data_events(Duration::ZERO).unwrap();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["third"]);
}

#[test]
fn a_timer_that_adds_itself_again_does_not_starve_callbacks() {
    let connection = connect();
    fn again(connection: &BlockingConnection) -> cony::Result<()> {
        connection.add_timeout(Duration::ZERO, again);
        Ok(())
    }
    connection.add_timeout(Duration::ZERO, again);
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    channel
        .basic_consume(&queue, |channel, delivery| {
            delivery.ack()?;
            channel.connection().stop();
            Ok(())
        })
        .unwrap();
    channel.basic_publish("", &queue, "x").unwrap();
    connection.run().unwrap();
    connection.sleep(Duration::from_millis(5)).unwrap();
    connection.close().unwrap();
}

#[test]
fn the_timers_behind_a_failed_timer_still_run() {
    let connection = connect();
    let (note, noted) = mpsc::channel();
    connection.add_timeout(Duration::ZERO, |_| Err(Error::other("as intended")));
    connection.add_timeout(Duration::ZERO, |_| panic!("panic of a timer"));
    connection.add_timeout(Duration::ZERO, move |_| {
        note.send(()).unwrap();
        Ok(())
    });
    let error = connection.process_data_events(PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "as intended");
    let panic = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let _ = connection.process_data_events(PATIENCE);
    }));
    let panicked = panic.unwrap_err();
    assert_eq!(panicked.downcast_ref(), Some(&"panic of a timer"));
    connection.process_data_events(PATIENCE).unwrap();
    noted.try_recv().unwrap();
    connection.close().unwrap();
}
