//! A set of numbers that are mostly consecutive.

use std::collections::BTreeMap;

/// A set of numbers from 1, stored as ranges. So consecutive numbers need almost no memory, and
/// neither does a single large number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranges {
    /// All numbers up to this one are in the set.
    floor: u64,
    /// The ranges above `floor`: first number and last number. There is a gap before each.
    above: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds `number`. Returns `false` if it was in the set.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        if self.above.is_empty() && self.floor.checked_add(1) == Some(number) {
            self.floor = number;
            return true;
        }
        self.insert_out_of_order(number)
    }

    // Cold, because numbers are mostly inserted in order.
    #[cold]
    fn insert_out_of_order(&mut self, number: u64) -> bool {
        let is_new = !self.contains(number);
        if is_new {
            self.insert_all(number, number);
        }
        is_new
    }

    /// Adds the numbers from `first` to `last`.
    pub(crate) fn insert_all(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first.max(1), last);
        if first > last {
            return;
        }
        // Merges all ranges that overlap or adjoin the new one.
        let reach = last.saturating_add(1);
        while let Some((&start, &end)) = self.above.range(..=reach).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            self.above.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        match first <= self.floor.saturating_add(1) {
            true => self.floor = self.floor.max(last),
            false => drop(self.above.insert(first, last)),
        }
    }

    /// Adds all numbers up to `last`, and returns how many were not in the set.
    pub(crate) fn fill(&mut self, last: u64) -> u64 {
        let mut new = 0;
        while let Some(lowest) = self.above.first_entry() {
            if *lowest.key() > last.saturating_add(1) {
                break;
            }
            let (start, end) = lowest.remove_entry();
            new += start - 1 - self.floor;
            self.floor = end;
        }
        new += last.saturating_sub(self.floor);
        self.floor = self.floor.max(last);
        new
    }

    /// Removes the numbers from `first` to `last`.
    pub(crate) fn remove_all(&mut self, first: u64, last: u64) {
        let first = first.max(1);
        if first > last {
            return;
        }
        if first <= self.floor {
            let floor = std::mem::replace(&mut self.floor, first - 1);
            self.above.insert(first, floor);
        }
        while let Some((&start, &end)) = self.above.range(..=last).next_back() {
            if end < first {
                return;
            }
            self.above.remove(&start);
            if start < first {
                self.above.insert(start, first - 1);
            }
            if end > last {
                self.above.insert(last + 1, end);
            }
        }
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        number <= self.floor || self.around(number).is_some()
    }

    /// Returns the range above `floor` that contains `number`.
    fn around(&self, number: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.above.range(..=number).next_back()?;
        (end >= number).then_some((start, end))
    }

    /// Returns the lowest number that is at least `from`.
    pub(crate) fn lowest_from(&self, from: u64) -> Option<u64> {
        let from = from.max(1);
        if from <= self.floor {
            return Some(from);
        }
        if self.around(from).is_some() {
            return Some(from);
        }
        self.above.range(from..).next().map(|(&start, _)| start)
    }

    /// Returns the highest number up to `number` that is not in the set.
    pub(crate) fn highest_missing(&self, number: u64) -> Option<u64> {
        let missing = match self.around(number) {
            Some((start, _)) => start - 1,
            None => number,
        };
        (missing > self.floor).then_some(missing)
    }

    /// Returns the numbers from `first` to `last` that are not in the set, as ranges.
    pub(crate) fn missing(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut next = first.max(self.floor.saturating_add(1));
        if let Some((_, end)) = self.around(next) {
            next = end.saturating_add(1);
        }
        for (&start, &end) in self.above.range(next..) {
            if start > last {
                break;
            }
            missing.push((next, start - 1));
            next = end.saturating_add(1);
        }
        if next <= last && !self.contains(next) {
            missing.push((next, last));
        }
        missing
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let floor = (self.floor > 0).then_some((1, self.floor));
        let above = self.above.iter().map(|(&start, &end)| (start, end));
        floor.into_iter().chain(above)
    }

    /// Returns how many numbers are in the set.
    pub(crate) fn len(&self) -> u64 {
        self.iter().map(|(start, end)| end - start + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn consecutive_or_very_large_numbers_need_almost_no_memory() {
        let mut ranges = Ranges::default();
        for number in 1..=1_000_000 {
            assert!(ranges.insert(number));
        }
        assert!(ranges.above.is_empty());
        assert!(ranges.insert(u64::MAX));
        assert!(!ranges.insert(u64::MAX));
        ranges.insert_all(1, u64::MAX - 1);
        assert!(ranges.above.is_empty());
        assert!(!ranges.insert(u64::MAX) && !ranges.insert(0));
        assert_eq!(ranges.fill(u64::MAX), 0);
        assert_eq!(ranges.len(), u64::MAX);
        assert_eq!(ranges.highest_missing(u64::MAX), None);
        assert_eq!(ranges.missing(1, u64::MAX), []);
        ranges.remove_all(5, u64::MAX - 1);
        assert_eq!(ranges.highest_missing(u64::MAX), Some(u64::MAX - 1));
        assert_eq!(ranges.missing(1, u64::MAX), [(5, u64::MAX - 1)]);
        ranges.remove_all(1, u64::MAX);
        assert_eq!(ranges.len(), 0);
    }

    fn spread(ranges: &[(u64, u64)]) -> Vec<u64> {
        ranges.iter().flat_map(|&(a, b)| a..=b).collect()
    }

    proptest! {
        // proptest prints a failing case. Without this it would also write a file into the source
        // tree.
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn they_equal_a_set_of_numbers(acts in proptest::collection::vec((0u8..9, 1u64..60, 0u64..20), 0..60)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (kind, first, more) in acts {
                let last = first + more;
                match kind {
                    0..=3 => prop_assert_eq!(ranges.insert(first), model.insert(first)),
                    4 => {
                        let before = model.len();
                        model.extend(1..=first);
                        prop_assert_eq!(ranges.fill(first), (model.len() - before) as u64);
                    }
                    5 | 6 => {
                        ranges.insert_all(first, last);
                        model.extend(first..=last);
                    }
                    _ => {
                        ranges.remove_all(first, last);
                        model.retain(|number| !(first..=last).contains(number));
                    }
                }
                let all: Vec<_> = ranges.iter().collect();
                prop_assert_eq!(spread(&all), model.iter().copied().collect::<Vec<_>>());
                prop_assert!(all.windows(2).all(|two| two[0].1 + 1 < two[1].0), "{:?}", all);
                prop_assert_eq!(ranges.len(), model.len() as u64);
                prop_assert_eq!(ranges.contains(first), model.contains(&first));
                prop_assert_eq!(ranges.lowest_from(first), model.range(first..).next().copied());
                let is_missing = |number: &u64| !model.contains(number);
                prop_assert_eq!(ranges.highest_missing(last), (1..=last).rev().find(is_missing));
                let missing: Vec<_> = (first..=last).filter(is_missing).collect();
                prop_assert_eq!(spread(&ranges.missing(first, last)), missing);
            }
        }
    }
}
