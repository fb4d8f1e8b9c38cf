//! Threads that do random things while their connection ends and is replaced again and again.
//!
//! `CONY_TEST_STRESS=100 CONY_TEST_SEED=7` in the environment makes the test 100 times as long,
//! with other random numbers. Under ThreadSanitizer (needs the component `rust-src`; the tests
//! that measure memory do not apply there):
//!
//!     RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread tests/with-broker cargo test \
//!         -Zbuild-std --target x86_64-unknown-linux-gnu --no-default-features --test live stress

use std::env;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use cony::{
    BlockingChannel, BlockingConnection, ClosedBy, Consumer, Delivery, Error, Message,
    PublisherConfirm, basic,
};

use crate::support::{channel, connect, unique};

/// Returns the number of actions of each thread. `CONY_TEST_STRESS` multiplies it.
fn actions_each() -> u64 {
    5_000 * env::var("CONY_TEST_STRESS").map_or(1, |value| value.parse::<u64>().unwrap())
}

/// A small generator of random numbers. The same seed gives the same numbers.
struct Dice(u64);

impl Dice {
    /// Returns a number less than `below`.
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// The state of one thread: the handles that its random actions use.
struct Actor {
    dice: Dice,
    shared: Arc<Mutex<BlockingConnection>>,
    queue: String,
    channels: Vec<BlockingChannel>,
    consumers: Vec<Consumer>,
    deliveries: Vec<Delivery>,
    confirms: Vec<PublisherConfirm>,
}

/// Removes and returns one item, chosen at random.
fn pick<T>(dice: &mut Dice, items: &mut Vec<T>) -> Option<T> {
    let count = items.len() as u64;
    (count > 0).then(|| items.swap_remove(usize::try_from(dice.roll(count)).unwrap()))
}

impl Actor {
    /// Does one random action. A handle that the action closes, settles or drops is removed.
    fn act(&mut self) -> cony::Result<()> {
        let dice = &mut self.dice;
        let action = dice.roll(100);
        let count = self.channels.len();
        if action < 8 || count == 0 {
            let connection = self.shared.lock().unwrap().clone();
            let channel = connection.channel()?;
            if dice.roll(2) == 0 {
                channel.confirm_delivery()?;
            }
            self.channels.push(channel);
            return Ok(());
        }
        let channel = self.channels[usize::try_from(dice.roll(count as u64)).unwrap()].clone();
        match action {
            8..=45 => {
                let text = vec![b'x'; usize::try_from(dice.roll(3000)).unwrap()];
                let message = Message::new(&text).mandatory(dice.roll(3) == 0);
                self.confirms
                    .push(channel.basic_publish("", &self.queue, message)?);
            }
            46..=55 => {
                let consume = basic::Consume::new(&self.queue).no_ack(dice.roll(2) == 0);
                self.consumers.push(channel.consume(consume)?);
            }
            56..=75 => {
                if let Some(consumer) = pick(dice, &mut self.consumers) {
                    self.deliveries.extend(consumer.try_recv()?);
                    self.consumers.push(consumer);
                }
            }
            76..=82 => {
                if let Some(delivery) = pick(dice, &mut self.deliveries) {
                    match dice.roll(3) {
                        0 => delivery.ack()?,
                        1 => delivery.requeue()?,
                        _ => drop(delivery),
                    }
                }
            }
            83..=86 => {
                if let Some(consumer) = pick(dice, &mut self.consumers) {
                    match dice.roll(2) {
                        0 => drop(consumer.cancel()?),
                        _ => drop(consumer),
                    }
                }
            }
            87..=89 => {
                if let Some(confirm) = pick(dice, &mut self.confirms) {
                    confirm.wait()?;
                }
            }
            90..=91 => drop(channel.basic_get(&self.queue)?),
            92..=93 => drop(channel.queue_declare(&self.queue)?),
            94 => channel.basic_qos(u16::try_from(dice.roll(50)).unwrap())?,
            95..=97 => {
                if let Some(channel) = pick(dice, &mut self.channels) {
                    channel.close()?;
                }
            }
            98 => drop(pick(dice, &mut self.channels)),
            _ => self.consumers.clear(),
        }
        Ok(())
    }

    /// Whether an action may fail with this error: a close by this program is expected, a close by
    /// the broker is not.
    fn is_expected(error: &Error) -> bool {
        match error {
            Error::ConnectionClosed(reason) | Error::ChannelClosed(reason) => {
                reason.by == ClosedBy::Application
            }
            Error::Unconfirmed(reason) => Self::is_expected(reason),
            Error::NotConfirming | Error::AlreadySettled(_) => true,
            _ => false,
        }
    }
}

#[test]
fn random_actions_of_eight_threads_meet_expected_errors_only_while_connections_end() {
    let seed = env::var("CONY_TEST_SEED").map_or(20_261_125, |value| value.parse().unwrap());
    let setup = channel();
    let queue = unique("stress");
    setup.queue_declare(&queue).unwrap();
    let shared = Arc::new(Mutex::new(connect()));
    let (acted, actions) = mpsc::channel();
    let threads: Vec<_> = (1..=8u64)
        .map(|number| {
            let mut actor = Actor {
                dice: Dice(seed * 8 + number),
                shared: Arc::clone(&shared),
                queue: queue.clone(),
                channels: Vec::new(),
                consumers: Vec::new(),
                deliveries: Vec::new(),
                confirms: Vec::new(),
            };
            let acted = acted.clone();
            thread::spawn(move || {
                for _ in 0..actions_each() {
                    if let Err(error) = actor.act() {
                        assert!(
                            Actor::is_expected(&error),
                            "seed {seed}, thread {number}: {error}"
                        );
                        actor.channels.retain(BlockingChannel::is_open);
                    }
                    actor.confirms.truncate(100);
                    actor.deliveries.truncate(100);
                    acted.send(()).unwrap();
                }
            })
        })
        .collect();
    drop(acted);
    // Replaces the connection after some actions, and ends the former one in one of three ways.
    let mut dice = Dice(seed);
    let mut connections = 0;
    loop {
        let some = (100 + dice.roll(400)) as usize;
        if actions.iter().take(some).count() < some {
            break;
        }
        let former = std::mem::replace(&mut *shared.lock().unwrap(), connect());
        match dice.roll(3) {
            0 => former.disconnect(),
            1 => match former.close() {
                Ok(()) => {}
                // Other threads have published until the deadline of the confirms, or after `close`
                // had waited for them.
                Err(Error::Unconfirmed(reason))
                    if reason.is_timeout() || Actor::is_expected(&reason) => {}
                Err(error) => panic!("seed {seed}: {error}"),
            },
            _ => drop(former),
        }
        connections += 1;
    }
    for thread in threads {
        thread.join().unwrap();
    }
    println!("{connections} connections have ended");
    setup.queue_delete(&queue).unwrap();
}
