//! Which address the next Pod gets.
//!
//! Fresh addresses first, in order; when the range has been walked through, released ones, the longest released first.
//! Both are a step, however many addresses are in use. What is remembered may lag behind the truth (a process was
//! killed between two writes), so each candidate is asked for and a used one skipped: the truth decides, the memory
//! only saves looking for it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::range::{Range, RangeSet};

/// Where the allocation from one range set stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Cursor {
    /// The fresh address given last; `None` before the first.
    pub(crate) last: Option<IpAddr>,
    /// The queue of released addresses: the number of its first entry, and the number after its last.
    pub(crate) head: u64,
    pub(crate) tail: u64,
}

/// What an allocation has to ask its store.
pub(crate) trait Ledger {
    type Error;
    /// Whether nobody has `address`.
    fn is_free(&mut self, address: IpAddr) -> Result<bool, Self::Error>;
    /// The entry of the queue of released addresses with this number, if it is there.
    fn released(&mut self, number: u64) -> Result<Option<IpAddr>, Self::Error>;
}

/// Picks an address of `set` and moves `cursor` past it; `None` if all are in use.
///
/// # Errors
///
/// Those of the ledger.
pub(crate) fn pick<L: Ledger>(set: &RangeSet, cursor: &mut Cursor, ledger: &mut L) -> Result<Option<IpAddr>, L::Error> {
    while let Some(address) = next_fresh(set, cursor.last) {
        cursor.last = Some(address);
        if ledger.is_free(address)? {
            return Ok(Some(address));
        }
    }
    while cursor.head < cursor.tail {
        let number = cursor.head;
        cursor.head += 1;
        // An entry of a range that the config no longer has is dropped.
        if let Some(address) = ledger.released(number)?
            && set.range_of(address).is_some()
            && ledger.is_free(address)?
        {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// The address after `last` in the set, range by range. Past a range that the set no longer has, it starts over.
fn next_fresh(set: &RangeSet, last: Option<IpAddr>) -> Option<IpAddr> {
    let Some(last) = last else { return set.0.first().map(Range::start) };
    let Some(index) = set.0.iter().position(|range| range.offers(last)) else { return next_fresh(set, None) };
    set.0[index].after(last).or_else(|| set.0.get(index + 1).map(Range::start))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        convert::Infallible,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::config::range::RangeText;

    #[derive(Default)]
    struct Model {
        used: BTreeSet<IpAddr>,
        queue: BTreeMap<u64, IpAddr>,
        asked: usize,
    }

    impl Ledger for Model {
        type Error = Infallible;
        fn is_free(&mut self, address: IpAddr) -> Result<bool, Infallible> {
            self.asked += 1;
            Ok(!self.used.contains(&address))
        }
        fn released(&mut self, number: u64) -> Result<Option<IpAddr>, Infallible> {
            Ok(self.queue.remove(&number))
        }
    }

    fn set(subnets: &[&str]) -> RangeSet {
        let range = |subnet: &&str| {
            Range::new("", "", &RangeText { subnet: (*subnet).to_owned(), ..RangeText::default() }).unwrap()
        };
        RangeSet(subnets.iter().map(range).collect())
    }

    #[test]
    fn a_big_range_costs_one_question_however_full() {
        let set = set(&["10.0.0.0/8"]);
        let mut model = Model::default();
        let mut cursor = Cursor::default();
        for _ in 0..5000 {
            let address = pick(&set, &mut cursor, &mut model).unwrap().unwrap();
            model.used.insert(address);
        }
        assert_eq!(model.asked, 5000);
    }

    #[test]
    fn the_longest_released_comes_first() {
        let set = set(&["10.0.0.0/29"]);
        let mut model = Model::default();
        let mut cursor = Cursor::default();
        while let Some(address) = pick(&set, &mut cursor, &mut model).unwrap() {
            model.used.insert(address);
        }
        assert_eq!(model.used.len(), 5);
        for last in [4, 2] {
            let address: IpAddr = format!("10.0.0.{last}").parse().unwrap();
            model.used.remove(&address);
            model.queue.insert(cursor.tail, address);
            cursor.tail += 1;
        }
        for last in [4, 2] {
            assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), Some(format!("10.0.0.{last}").parse().unwrap()));
        }
        assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), None);
    }

    #[derive(Clone, Debug)]
    enum Action {
        Add { killed: bool },
        Del { which: usize, killed: bool },
        Shrink,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let action = prop_oneof![
            6 => prop::bool::weighted(0.2).prop_map(|killed| Action::Add { killed }),
            4 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(which, killed)| Action::Del { which, killed }),
            1 => Just(Action::Shrink),
        ];
        prop::collection::vec(action, 1..120)
    }

    proptest! {
        /// Whatever is killed (the cursor then stays behind, or an entry is queued twice), no address is given twice,
        /// none outside the set, and the set is exhausted only when all of it is in use.
        #[test]
        fn no_address_is_given_twice_and_none_is_lost(actions in actions()) {
            let wide = set(&["10.0.0.0/28", "10.0.1.0/29"]);
            let narrow = set(&["10.0.1.0/29"]);
            let mut current = &wide;
            let mut model = Model::default();
            let mut cursor = Cursor::default();
            for action in actions {
                match action {
                    Action::Add { killed } => {
                        let mut moved = cursor.clone();
                        let queue = model.queue.clone();
                        let Some(address) = pick(current, &mut moved, &mut model).unwrap() else {
                            let size: u128 = current.0.iter().map(Range::size).sum();
                            let used = model.used.iter().filter(|address| current.range_of(**address).is_some()).count();
                            prop_assert_eq!(used as u128, size);
                            continue;
                        };
                        prop_assert!(current.range_of(address).is_some());
                        prop_assert!(model.used.insert(address));
                        if killed {
                            model.queue = queue;
                        } else {
                            cursor = moved;
                        }
                    }
                    Action::Del { which, killed } => {
                        let Some(address) = model.used.iter().copied().nth(which % model.used.len().max(1)) else { continue };
                        model.queue.insert(cursor.tail, address);
                        cursor.tail += 1;
                        if !killed {
                            model.used.remove(&address);
                        }
                    }
                    Action::Shrink => {
                        current = if std::ptr::eq(current, &wide) { &narrow } else { &wide };
                        // The store starts over when the ranges change.
                        cursor.last = None;
                    }
                }
            }
        }
    }
}
