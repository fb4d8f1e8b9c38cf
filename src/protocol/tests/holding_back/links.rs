//! The order of deliveries over a slow link.

use super::*;

/// A broker behind a link of limited speed.
struct Link {
    world: World,
    rate: f64,
    /// The bytes on the wire, and the instants of their arrival.
    wire: VecDeque<(Instant, Vec<u8>)>,
    free_at: Instant,
    /// How long the program needs for a message, and when it takes the next one.
    work: Duration,
    busy_until: Instant,
}

impl Link {
    /// Sends the deliveries that the prefetch allows.
    fn send(&mut self) {
        let world = &mut self.world;
        while world.unsettled.len() < world.prefetch {
            let Some((place, redelivered)) = world.ready.pop_front() else {
                return;
            };
            world.tag += 1;
            world.unsettled.insert(world.tag, place);
            let method = deliver("tag", world.tag).redelivered(redelivered);
            let bytes = content(1, method, None, &vec![0; world.sizes[place]]);
            for piece in bytes.chunks(FRAME_MAX as usize) {
                let takes = Duration::from_secs_f64(piece.len() as f64 / self.rate);
                self.free_at = self.free_at.max(world.now) + takes;
                self.wire.push_back((self.free_at, piece.to_vec()));
            }
        }
    }

    fn run(&mut self) {
        while self.world.handled.len() < self.world.sizes.len() {
            self.send();
            self.world.requeue();
            while !self.world.to_broker.is_empty() {
                self.world.settle_one();
                self.send();
            }
            let world = &mut self.world;
            let arrival = self.wire.front().map(|(arrival, _)| *arrival);
            if arrival.is_some_and(|arrival| arrival <= world.now) {
                let (_, bytes) = self.wire.pop_front().unwrap();
                world.bytes(&bytes);
                continue;
            }
            if self.busy_until <= world.now && world.handle_one() {
                self.busy_until = world.now + self.work;
                continue;
            }
            let timer = world.core.poll_timeout();
            let free = Some(self.busy_until).filter(|free| *free > world.now);
            let next = arrival.into_iter().chain(timer).chain(free).min();
            world.now = next.expect("something is to happen").max(world.now);
            if timer.is_some_and(|due| due <= world.now) {
                world.core.handle_timeout(world.now);
            }
        }
    }
}

/// A requeued delivery arrives after all that the broker had sent before, which may take long.
#[test]
fn many_deliveries_on_their_way_keep_their_order() {
    // Bytes per second, size of a message and of the budget in bytes; milliseconds before the first
    // message is taken, and for each message.
    for (rate, size, soft, pause, work) in [
        (1e6, 16_000, 64_000, 0, 20),
        (1e6, 16_000, 64_000, 200, 0),
        (1e5, 2000, 64_000, 2000, 1),
        (1.25e4, 1000, 64_000, 10_000, 1),
        (2e3, 100, 1000, 1000, 1),
        // A message takes longer than a second.
        (1e4, 30_000, 100_000, 60_000, 10),
    ] {
        let world = world(&vec![size; 300], 200, soft);
        let now = world.now;
        let mut link = Link {
            world,
            rate,
            wire: VecDeque::new(),
            free_at: now,
            work: Duration::from_millis(work),
            busy_until: now + Duration::from_millis(pause),
        };
        link.run();
        let handled = &link.world.handled;
        assert!(handled.is_sorted(), "{rate} {size} {soft}: {handled:?}");
    }
}
