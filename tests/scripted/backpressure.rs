//! The backpressure callback.

use std::sync::mpsc;
use std::time::Duration;

use cony::BlockingConnection;

use crate::support::peer::{Tune, play, signal};

#[test]
fn the_backpressure_callback_runs_when_the_peer_reads_too_slowly() {
    let (told, was_told) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            // Reads nothing until the callback has run.
            was_told.wait();
            wire.serve();
        },
        move |parameters| {
            let parameters = parameters
                .backpressure_detection(true)
                .write_budget(64 * 1024 * 1024);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            connection.set_backpressure_multiplier(2);
            let (note, noted) = mpsc::channel();
            connection.add_backpressure_callback(move |_, waiting| {
                note.send(waiting).unwrap();
                Ok(())
            });
            // More bytes than the socket buffers hold, and fewer than the write budget.
            for _ in 0..300 {
                channel.basic_publish("", "q", vec![0; 100_000]).unwrap();
            }
            let waiting = loop {
                connection
                    .process_data_events(Duration::from_millis(10))
                    .unwrap();
                if let Ok(waiting) = noted.try_recv() {
                    break waiting;
                }
            };
            assert!(waiting > 0);
            told.send(()).unwrap();
        },
    );
}

#[test]
fn without_backpressure_detection_the_callback_never_runs() {
    let (done, is_done) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            is_done.wait();
            wire.serve();
        },
        move |parameters| {
            let parameters = parameters.write_budget(64 * 1024 * 1024);
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            connection.add_backpressure_callback(|_, _| panic!("backpressure_detection is off"));
            for _ in 0..300 {
                channel.basic_publish("", "q", vec![0; 100_000]).unwrap();
            }
            connection.process_data_events(Duration::ZERO).unwrap();
            done.send(()).unwrap();
        },
    );
}
