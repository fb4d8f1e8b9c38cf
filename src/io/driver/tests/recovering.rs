//! Tests the way of the IO thread from a lost connection to the next one.

use super::*;
use crate::io::driver::connecting::AttemptError;
use crate::protocol::methods::exchange;
use crate::protocol::recovery::policy::AttemptFailure;
use crate::protocol::recovery::session::{self, BrokerOrder};
use crate::protocol::stage::Stage;

/// A running IO thread that outlives losses, and the listener to which it connects.
struct Recovery {
    play: Play,
    listener: TcpListener,
}

impl Recovery {
    fn begin() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = move |_, _, _: &_| {
            link_to(address).map_err(|error| AttemptError {
                failure: AttemptFailure::Unreachable(Stage::Tcp),
                error: Box::new(Error::other(error)),
            })
        };
        let recovery = RecoverySettings {
            connect: Arc::new(connect),
            session: session::Settings {
                brokers: 1,
                order: BrokerOrder::Shuffled,
                max_delay: Duration::from_secs(1),
                limit: None,
                attempt_timeout: TEST_TIMEOUT,
            },
            topology: Topology::All,
            first_broker: 0,
        };
        let link = link_to(address).unwrap();
        let driver = Driver::new(link, settings(1 << 20), Some(recovery));
        let play = Play {
            shared: Arc::clone(&driver.shared),
            thread: thread::spawn(move || driver.run()),
            peer: accept(&listener),
        };
        Self { play, listener }
    }

    /// Ends the stream, and accepts the next connection.
    fn lose(&mut self) {
        let _ = self.play.peer.socket.shutdown(std::net::Shutdown::Both);
        self.play.peer = accept(&self.listener);
    }

    /// Declares an exchange and starts a consumer.
    fn use_channel(&mut self) -> (Arc<ChannelShared>, Arc<ConsumerShared>) {
        let play = &mut self.play;
        let channel = play.open_channel();
        let declared = channel.queue_call(exchange::Declare::new("e").into(), None, soon());
        play.peer.answer(exchange::Declare::ID);
        expect_reply(&declared);
        let consume = basic::Consume::new("q").consumer_tag("me");
        let (consumer, started) = begin_consume(&channel, consume);
        play.peer.answer(basic::Consume::ID);
        expect_reply(&started);
        (channel, consumer)
    }

    /// Expects the calls that restore a channel after `use_channel`.
    fn expect_restoration(&mut self) {
        for id in [
            channel::Open::ID,
            exchange::Declare::ID,
            channel::Close::ID,
            channel::Open::ID,
            basic::Consume::ID,
        ] {
            self.play.peer.answer(id);
        }
    }

    fn end(self) {
        self.play.shared.send(Command::Disconnect);
        self.play.thread.join().unwrap();
    }
}

impl Peer {
    /// Expects this method on channel 1, and answers it.
    fn answer(&mut self, id: MethodId) {
        self.expect(id);
        match id {
            channel::Open::ID => self.send(1, channel::OpenOk::default()),
            channel::Close::ID => self.send(1, channel::CloseOk::default()),
            exchange::Declare::ID => self.send(1, exchange::DeclareOk::default()),
            basic::Consume::ID => self.send(1, basic::ConsumeOk::default().consumer_tag("me")),
            _ => panic!("{id} has no answer here"),
        }
    }
}

#[test]
fn after_a_loss_topology_channel_and_consumer_come_back_and_old_deliveries_are_stale() {
    let mut recovery = Recovery::begin();
    let (channel, consumer) = recovery.use_channel();
    let ack = Settle::Ack { multiple: false };
    for epoch in 1..=3 {
        recovery.play.peer.deliver("me", 1, b"one");
        recovery.play.peer.deliver("me", 2, b"two");
        wait_until(|| consumer.inbox().len() == 2);
        let Next::Message(_) = consumer.inbox().try_pop() else {
            panic!("no delivery");
        };
        recovery.lose();
        recovery.expect_restoration();
        assert!(
            consumer.inbox().is_empty(),
            "an untaken delivery comes again"
        );
        channel.settle(2 * epoch, ack).unwrap();
    }
    recovery.play.peer.deliver("me", 1, b"again");
    wait_until(|| consumer.inbox().len() == 1);
    channel.settle(7, ack).unwrap();
    recovery.play.peer.expect(basic::Ack::ID);
    recovery.end();
}
