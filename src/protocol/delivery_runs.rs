//! The consumers to which the deliveries of a channel have gone.

use std::collections::VecDeque;

/// The number of runs at which the settled ones are dropped for the first time.
const RUNS_MIN: usize = 64;

/// The deliveries of a channel as runs of successive delivery tags, each with its consumer. One
/// consumer has one run, whatever the number of its deliveries.
///
/// `K` identifies a consumer. It distinguishes consumers that had the same tag one after the other.
#[derive(Debug)]
pub(crate) struct DeliveryRuns<K> {
    runs: VecDeque<Run<K>>,
    /// The number of runs at which the settled ones are dropped.
    limit: usize,
}

#[derive(Debug)]
struct Run<K> {
    consumer: K,
    first: u64,
    last: u64,
}

impl<K> Default for DeliveryRuns<K> {
    fn default() -> Self {
        Self {
            runs: VecDeque::new(),
            limit: RUNS_MIN,
        }
    }
}

impl<K> DeliveryRuns<K> {
    /// Notes the deliveries from `first` to `last`. `is_of` returns whether an earlier run has the
    /// same consumer as `new`.
    pub(crate) fn note(
        &mut self,
        first: u64,
        last: u64,
        is_of: impl Fn(&K) -> bool,
        new: impl FnOnce() -> K,
    ) {
        match self.runs.back_mut() {
            Some(run) if run.last.checked_add(1) == Some(first) && is_of(&run.consumer) => {
                run.last = last;
            }
            _ => self.runs.push_back(Run {
                consumer: new(),
                first,
                last,
            }),
        }
    }

    /// Returns whether there are so many runs that the settled ones should be
    /// [dropped](Self::drop_settled).
    pub(crate) fn is_long(&self) -> bool {
        self.runs.len() > self.limit
    }

    /// Drops the runs whose deliveries are all settled. `is_settled` decides it by the first and
    /// last tag.
    pub(crate) fn drop_settled(&mut self, is_settled: impl Fn(u64, u64) -> bool) {
        self.runs.retain(|run| !is_settled(run.first, run.last));
        // The next time is when their number has doubled, so each run costs little.
        self.limit = RUNS_MIN.max(2 * self.runs.len());
    }

    /// Takes the runs of a consumer out: first and last tag of each.
    pub(crate) fn take(&mut self, is_meant: impl Fn(&K) -> bool) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        self.runs.retain(|run| {
            let is_kept = !is_meant(&run.consumer);
            if !is_kept {
                taken.push((run.first, run.last));
            }
            is_kept
        });
        taken
    }

    /// Forgets all deliveries.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(runs: &mut DeliveryRuns<char>, first: u64, last: u64, consumer: char) {
        runs.note(first, last, |other| *other == consumer, || consumer);
    }

    #[test]
    fn successive_deliveries_of_a_consumer_are_one_run() {
        let mut runs = DeliveryRuns::default();
        for (first, last) in [(1, 3), (4, 4), (5, 9)] {
            note(&mut runs, first, last, 'a');
        }
        note(&mut runs, 10, 12, 'b');
        // 13 was the message of a `basic.get`.
        note(&mut runs, 14, 14, 'b');
        note(&mut runs, 15, 15, 'a');
        assert_eq!(runs.runs.len(), 4);
        assert_eq!(runs.take(|it| *it == 'a'), [(1, 9), (15, 15)]);
        assert!(runs.take(|it| *it == 'a').is_empty());
        assert_eq!(runs.take(|it| *it == 'b'), [(10, 12), (14, 14)]);
    }

    #[test]
    fn settled_runs_are_dropped_and_those_of_forgotten_deliveries_are_kept() {
        let mut runs = DeliveryRuns::default();
        let forgotten = |tag: u64| tag % 100 == 1;
        for tag in 1..=10_000 {
            note(&mut runs, tag, tag, if tag % 2 == 0 { 'a' } else { 'b' });
            if runs.is_long() {
                runs.drop_settled(|first, _| !forgotten(first));
            }
            assert!(runs.runs.len() <= 2 * RUNS_MIN.max(100));
        }
        let left = runs.take(|it| *it == 'b');
        let left: Vec<_> = left.iter().filter(|(first, _)| forgotten(*first)).collect();
        assert_eq!(left.len(), 100);
    }
}
