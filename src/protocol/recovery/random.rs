//! Random numbers for delays and for the order of brokers, from a seed that is given in.

use std::time::Duration;

/// A generator of random numbers (SplitMix64 by Steele, Lea and Flood). It spreads the attempts of
/// many clients, and is of no use for secrets.
#[derive(Debug, Clone)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number up to `max`, which is included.
    pub(super) fn up_to(&mut self, max: u64) -> u64 {
        match max.checked_add(1) {
            Some(count) => self.next() % count,
            None => self.next(),
        }
    }

    /// Returns a duration between the two, in whole milliseconds.
    pub(super) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = most.saturating_sub(least).as_millis();
        let span = u64::try_from(span).unwrap_or(u64::MAX);
        least + Duration::from_millis(self.up_to(span))
    }

    /// Shuffles a list (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.up_to(last as u64);
            list.swap(last, usize::try_from(other).unwrap_or(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut random = Random::new(1_234_567);
        let numbers = [random.next(), random.next(), random.next()];
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(numbers, published);
    }

    #[test]
    fn both_bounds_are_reached_and_not_exceeded() {
        let mut random = Random::new(1);
        let numbers: BTreeSet<u64> = (0..1_000).map(|_| random.up_to(3)).collect();
        assert_eq!(numbers, BTreeSet::from([0, 1, 2, 3]));
        let (least, most) = (Duration::from_millis(5), Duration::from_millis(7));
        let durations = (0..1_000).map(|_| random.between(least, most).as_millis());
        assert_eq!(
            durations.collect::<BTreeSet<_>>(),
            BTreeSet::from([5, 6, 7])
        );
        assert_eq!(random.between(most, least), most);
        random.up_to(u64::MAX);
    }

    #[test]
    fn a_shuffle_reaches_every_order() {
        let mut random = Random::new(1);
        let orders = (0..1_000).map(|_| {
            let mut list = [1, 2, 3];
            random.shuffle(&mut list);
            list
        });
        assert_eq!(orders.collect::<BTreeSet<_>>().len(), 6);
        random.shuffle::<u8>(&mut []);
    }
}
