//! The figures of `BlockingConnection::stats`.

use cony::Message;

use crate::support::{connect, exclusive_queue, unique};

#[test]
fn stats_count_messages_frames_and_bytes() {
    let connection = connect();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let before = connection.stats();
    let consumer = channel.consume(&queue).unwrap();
    // Three frames for each message, and five for the large one.
    channel.basic_publish("", &queue, "small").unwrap();
    channel.basic_publish("", &queue, vec![0; 300_000]).unwrap();
    channel
        .basic_publish("", unique("nowhere"), Message::new("x").mandatory(true))
        .unwrap();
    for _ in 0..2 {
        consumer.recv().unwrap().unwrap().ack().unwrap();
    }
    channel.basic_qos(1).unwrap();
    let after = connection.stats();
    assert_eq!(after.messages_published - before.messages_published, 3);
    assert_eq!(after.messages_received - before.messages_received, 2);
    assert_eq!(after.messages_returned, 1);
    // basic.qos and basic.consume, the three messages, two acks, and basic.qos.
    assert_eq!(
        after.frames_sent - before.frames_sent,
        2 + 3 + 5 + 3 + 2 + 1
    );
    assert_eq!(
        after.frames_received - before.frames_received,
        2 + 3 + 5 + 3 + 1
    );
    assert!(after.bytes_sent - before.bytes_sent > 300_000);
    assert!(after.bytes_received - before.bytes_received > 300_000);
    assert_eq!((after.bytes_to_write, after.bytes_to_take), (0, 0));
    assert_eq!(after.channels, 1);
}
