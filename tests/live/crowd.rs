//! Threads that do anything at any time, while connections end around them.
//!
//! `CONY_TEST_STRESS=600 CONY_TEST_SEED=7` in the environment lets it go on for ten minutes,
//! with other numbers. Under ThreadSanitizer (needs the component `rust-src`; memory that is
//! measured elsewhere is then more):
//!
//!     RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread tests/with-broker cargo test \
//!         -Zbuild-std --target x86_64-unknown-linux-gnu --no-default-features --test live crowd

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cony::{
    BlockingChannel, BlockingConnection, ClosedBy, Confirm, Consumer, Delivery, Error, Message,
    basic,
};

use crate::support::{channel, connect, unique};

/// How long the crowd below goes on, in seconds. `CONY_TEST_STRESS` overrides it.
fn stress_seconds() -> u64 {
    std::env::var("CONY_TEST_STRESS").map_or(4, |value| value.parse().unwrap())
}

/// A small generator of numbers below a bound, the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What a thread of the crowd has at hand, and may do anything with.
struct Actor {
    dice: Dice,
    shared: Arc<Mutex<BlockingConnection>>,
    queue: String,
    channels: Vec<BlockingChannel>,
    consumers: Vec<Consumer>,
    deliveries: Vec<Delivery>,
    confirms: Vec<Confirm>,
}

fn pick<T>(dice: &mut Dice, items: &mut Vec<T>) -> Option<T> {
    let count = items.len() as u64;
    (count > 0).then(|| items.swap_remove(usize::try_from(dice.roll(count)).unwrap()))
}

impl Actor {
    /// One thing at random; what is picked is used up.
    fn act(&mut self) -> cony::Result<()> {
        let dice = &mut self.dice;
        let what = dice.roll(100);
        let count = self.channels.len();
        if what < 8 || count == 0 {
            let connection = self.shared.lock().unwrap().clone();
            let channel = connection.channel()?;
            if dice.roll(2) == 0 {
                channel.confirm_delivery()?;
            }
            self.channels.push(channel);
            return Ok(());
        }
        let channel = self.channels[usize::try_from(dice.roll(count as u64)).unwrap()].clone();
        match what {
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
                    self.deliveries.extend(consumer.try_next()?);
                    self.consumers.push(consumer);
                }
            }
            76..=82 => {
                if let Some(delivery) = pick(dice, &mut self.deliveries) {
                    match dice.roll(3) {
                        0 => delivery.ack()?,
                        1 => delivery.nack(true)?,
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
            // Nobody takes its messages any more.
            _ => self.consumers.clear(),
        }
        Ok(())
    }

    /// Whether a crowd may meet this. Above all, the broker has no reason to complain.
    fn is_fair(error: &Error) -> bool {
        match error {
            Error::ConnectionClosed(reason) | Error::ChannelClosed(reason) => {
                reason.by == ClosedBy::Application
            }
            Error::Unconfirmed(reason) => Self::is_fair(reason),
            Error::NotConfirming | Error::AlreadySettled(_) => true,
            _ => false,
        }
    }
}

#[test]
fn a_crowd_that_does_anything_at_any_time_ends_well() {
    let seed = std::env::var("CONY_TEST_SEED").map_or(20_261_125, |value| value.parse().unwrap());
    let setup = channel();
    let queue = unique("crowd");
    setup.queue_declare(&queue).unwrap();
    let shared = Arc::new(Mutex::new(connect()));
    let end = Instant::now() + Duration::from_secs(stress_seconds());
    let crowd: Vec<_> = (1..=8u64)
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
            thread::spawn(move || {
                let mut count = 0;
                while Instant::now() < end {
                    count += 1;
                    if let Err(error) = actor.act() {
                        assert!(
                            Actor::is_fair(&error),
                            "seed {seed}, thread {number}: {error}"
                        );
                        // What is dead is of no use any more.
                        actor.channels.retain(BlockingChannel::is_open);
                    }
                    actor.confirms.truncate(100);
                    actor.deliveries.truncate(100);
                }
                count
            })
        })
        .collect();
    // Meanwhile the connection ends again and again, in one way or the other.
    let mut dice = Dice(seed);
    let mut turns = 0;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(50 + dice.roll(200)));
        let old = std::mem::replace(&mut *shared.lock().unwrap(), connect());
        match dice.roll(3) {
            0 => old.disconnect(),
            1 => old.close().unwrap(),
            _ => drop(old),
        }
        turns += 1;
    }
    let counts: Vec<u64> = crowd.into_iter().map(|it| it.join().unwrap()).collect();
    println!("{turns} connections, {counts:?} acts");
    assert!(turns > 3 && counts.iter().all(|&count| count > 10));
    setup.queue_delete(&queue).unwrap();
}
