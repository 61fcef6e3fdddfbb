//! Which address comes next, whatever is killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use proptest::prelude::*;

use super::*;
use crate::config::range::RangeText;

/// What the files of a store say.
#[derive(Clone, Default)]
struct Model {
    used: BTreeSet<IpAddr>,
    queue: BTreeMap<u64, IpAddr>,
    /// The entry and the time of the release of an address that isn't in use.
    released: BTreeMap<IpAddr, (u64, Duration)>,
    now: Duration,
    asked: usize,
}

/// An address, and when it was released if it cools.
type FreeAddress = (IpAddr, Option<Duration>);

const COOLDOWN: Duration = Duration::from_secs(30);

impl Ledger for Model {
    type Error = Infallible;
    fn standing(&mut self, address: IpAddr) -> Result<Standing, Infallible> {
        self.asked += 1;
        Ok(match self.released.get(&address) {
            _ if self.used.contains(&address) => Standing::Used,
            Some(&(entry, since)) => {
                Standing::Released { entry, since, cooling: self.now.saturating_sub(since) < COOLDOWN }
            }
            None => Standing::Free,
        })
    }
    fn released(&mut self, number: u64) -> Result<Option<IpAddr>, Infallible> {
        Ok(self.queue.get(&number).copied())
    }
}

impl Model {
    /// What an ADD that got as far as its record leaves.
    fn take(&mut self, address: IpAddr) {
        assert!(self.used.insert(address), "{address} is given twice");
        self.released.remove(&address);
    }

    /// A DEL; each release is later than the one before.
    fn release(&mut self, address: IpAddr, cursor: &mut Cursor) {
        self.now += Duration::from_millis(1);
        self.queue.insert(cursor.tail, address);
        self.used.remove(&address);
        self.released.insert(address, (cursor.tail, self.now));
        cursor.tail += 1;
    }

    /// The free addresses of `set`, those that cool with the time of their release.
    fn free(&mut self, set: &RangeSet) -> Vec<FreeAddress> {
        let mut free = Vec::new();
        let mut last = None;
        while let Some(address) = next_fresh(set, last) {
            last = Some(address);
            match self.standing(address).unwrap() {
                Standing::Used => {}
                Standing::Released { since, cooling: true, .. } => free.push((address, Some(since))),
                _ => free.push((address, None)),
            }
        }
        free
    }
}

fn set(subnets: &[&str]) -> RangeSet {
    let range = |subnet: &&str| {
        Range::new("", "", &RangeText { subnet: (*subnet).to_owned(), ..RangeText::default() }).unwrap()
    };
    RangeSet(subnets.iter().map(range).collect())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_big_range_costs_one_question_however_full() {
    let set = set(&["10.0.0.0/8"]);
    let mut model = Model::default();
    let mut cursor = Cursor::default();
    for _ in 0..5000 {
        let address = pick(&set, &mut cursor, &mut model).unwrap().unwrap();
        model.take(address);
    }
    assert_eq!(model.asked, 5000);
}

#[test]
fn the_longest_released_comes_first() {
    let set = set(&["10.0.0.0/29"]);
    let mut model = Model::default();
    let mut cursor = Cursor::default();
    while let Some(address) = pick(&set, &mut cursor, &mut model).unwrap() {
        model.take(address);
    }
    assert_eq!(model.used.len(), 5);
    for last in [4, 2] {
        model.release(address(&format!("10.0.0.{last}")), &mut cursor);
    }
    for last in [4, 2] {
        let given = pick(&set, &mut cursor, &mut model).unwrap().unwrap();
        assert_eq!(given, address(&format!("10.0.0.{last}")));
        model.take(given);
    }
    assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), None);
}

#[test]
fn a_long_queue_is_used_before_a_fresh_address_once_it_has_cooled() {
    let set = set(&["10.0.0.0/8"]);
    let mut model = Model::default();
    let mut cursor = Cursor::default();
    let mut given = Vec::new();
    for _ in 0..=LONG_QUEUE {
        given.push(pick(&set, &mut cursor, &mut model).unwrap().unwrap());
        model.take(given[given.len() - 1]);
    }
    for address in &given {
        model.release(*address, &mut cursor);
    }
    let fresh = pick(&set, &mut cursor, &mut model).unwrap().unwrap();
    assert!(!given.contains(&fresh));
    model.take(fresh);
    model.now += COOLDOWN;
    assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), Some(given[0]));
}

#[test]
fn a_queue_that_is_just_not_long_waits_for_the_fresh_addresses() {
    let set = set(&["10.0.0.0/8"]);
    let mut model = Model::default();
    let mut cursor = Cursor::default();
    for _ in 0..LONG_QUEUE {
        let given = pick(&set, &mut cursor, &mut model).unwrap().unwrap();
        model.take(given);
        model.release(given, &mut cursor);
    }
    model.now += COOLDOWN;
    assert_eq!(cursor.tail - cursor.head, LONG_QUEUE);
    assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), set.0[0].after(model.queue[&(LONG_QUEUE - 1)]));
}

#[test]
fn each_entry_of_the_queue_is_read_once() {
    let set = set(&["10.0.0.0/29"]);
    let mut model = Model::default();
    let mut cursor = Cursor { last: Some(set.0[0].last), head: 7, tail: 7 };
    for last in [2, 3] {
        model.release(address(&format!("10.0.0.{last}")), &mut cursor);
    }
    // Somebody lost the mark of the first one's release.
    model.released.remove(&address("10.0.0.2"));
    for (last, head) in [(2, 8), (3, 9)] {
        assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), Some(address(&format!("10.0.0.{last}"))));
        assert_eq!(cursor.head, head);
    }
}

#[test]
fn of_the_addresses_that_cool_outside_the_queue_the_longest_released_is_given() {
    let set = set(&["10.0.0.0/29"]);
    let mut model = Model::default();
    for (last, since) in [(2, 3), (3, 1), (4, 1), (5, 2), (6, 3)] {
        model.released.insert(address(&format!("10.0.0.{last}")), (0, Duration::from_secs(since)));
    }
    model.now = Duration::from_secs(4);
    let mut cursor = Cursor { last: Some(set.0[0].last), head: 1, tail: 1 };
    assert_eq!(pick(&set, &mut cursor, &mut model).unwrap(), Some(address("10.0.0.3")));
}

#[derive(Clone, Debug)]
enum Action {
    Add {
        killed: bool,
    },
    /// ADD of an address that was asked for.
    Request {
        which: u8,
    },
    Del {
        which: usize,
        killed: bool,
    },
    /// Time passes.
    Wait {
        seconds: u64,
    },
    /// The allocator's file is lost: the walk starts over, the queue's ends are found by its entries.
    Forget,
}

/// What harms the memory.
#[derive(Clone, Debug)]
enum Harm {
    Shrink,
    Cursor { last: Option<u8>, head: u64, tail: u64 },
    LoseEntry { number: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::bool::weighted(0.2).prop_map(|killed| Action::Add { killed }),
        1 => (0..16_u8).prop_map(|which| Action::Request { which }),
        5 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(which, killed)| Action::Del { which, killed }),
        1 => (1..40_u64).prop_map(|seconds| Action::Wait { seconds }),
        1 => Just(Action::Forget),
    ]
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        Just(Harm::Shrink),
        (prop::option::of(0..16_u8), 0..40_u64, 0..40_u64).prop_map(|(last, head, tail)| Harm::Cursor {
            last,
            head,
            tail: head + tail
        }),
        (0..40_u64).prop_map(|number| Harm::LoseEntry { number }),
    ]
}

/// Does one action as the store does; gives the address that an ADD was given beside those that were free.
fn act(action: &Action, set: &RangeSet, model: &mut Model, cursor: &mut Cursor) -> Option<(IpAddr, Vec<FreeAddress>)> {
    match *action {
        Action::Add { killed } => {
            let mut moved = cursor.clone();
            let free = model.free(set);
            let Some(given) = pick(set, &mut moved, model).unwrap() else {
                assert_eq!(free, [], "full with free addresses");
                return None;
            };
            assert!(set.range_of(given).is_some());
            model.take(given);
            if !killed {
                model.queue.retain(|number, _| !(cursor.head..moved.head).contains(number));
                *cursor = moved;
            }
            return Some((given, free));
        }
        Action::Request { which } => {
            let wanted = address(&format!("10.0.0.{which}"));
            if set.range_of(wanted).is_some() && !model.used.contains(&wanted) {
                model.take(wanted);
            }
        }
        Action::Del { which, killed } => {
            let given = model.used.iter().copied().nth(which % model.used.len().max(1))?;
            if killed {
                // After the queue's entry, before the record's removal.
                model.queue.insert(cursor.tail, given);
                cursor.tail += 1;
            } else {
                model.release(given, cursor);
            }
        }
        Action::Wait { seconds } => model.now += Duration::from_secs(seconds),
        Action::Forget => {
            let head = model.queue.keys().next().copied().unwrap_or(0);
            let tail = model.queue.keys().next_back().map_or(head, |last| last + 1);
            *cursor = Cursor { last: None, head, tail };
        }
    }
    None
}

proptest! {
    /// Whatever is killed (the cursor then stays behind, or an entry is queued twice), no address is given twice,
    /// none outside the set, and the set is full only when all of it is in use. An address that cools is given only
    /// if nothing else is free, and then the longest released one.
    #[test]
    fn what_cools_is_given_last(actions in prop::collection::vec(action(), 1..150)) {
        let set = set(&["10.0.0.0/28", "10.0.1.0/29"]);
        let mut model = Model { now: Duration::from_secs(1000), ..Model::default() };
        let mut cursor = Cursor::default();
        for action in &actions {
            let Some((given, free)) = act(action, &set, &mut model, &mut cursor) else { continue };
            let cooling = free.iter().find(|(address, _)| *address == given).unwrap().1;
            if let Some(since) = cooling {
                prop_assert!(free.iter().all(|(_, other)| other.is_some_and(|other| since <= other)), "{:?}", free);
            }
        }
    }

    /// Whatever happens to the memory, too: another config, a torn or an altered file.
    #[test]
    fn no_address_is_given_twice_and_none_is_lost(
        actions in prop::collection::vec((action(), prop::option::weighted(0.2, harm())), 1..150),
    ) {
        let wide = set(&["10.0.0.0/28", "10.0.1.0/29"]);
        let narrow = set(&["10.0.1.0/29"]);
        let mut current = &wide;
        let mut model = Model { now: Duration::from_secs(1000), ..Model::default() };
        let mut cursor = Cursor::default();
        for (action, harm) in &actions {
            act(action, current, &mut model, &mut cursor);
            match *harm {
                Some(Harm::Shrink) => {
                    current = if std::ptr::eq(current, &wide) { &narrow } else { &wide };
                    // The store starts over when the ranges change.
                    cursor.last = None;
                }
                Some(Harm::Cursor { last, head, tail }) => {
                    let last = last.map(|last| address(&format!("10.0.0.{last}")));
                    cursor = Cursor { last, head, tail };
                }
                Some(Harm::LoseEntry { number }) => drop(model.queue.remove(&number)),
                None => {}
            }
        }
    }
}
