//! Which address the next Pod gets.
//!
//! Fresh addresses first, in order; when the range has been walked through, released ones, the longest released first.
//! Both are a step, however many addresses are in use. One that was released a moment ago is given only when nothing
//! else is free: neighbours, connection trackers and load balancers still know it as somebody else's.
//!
//! What is remembered may lag behind the truth (a process was killed between two writes) or be lost, so each candidate
//! is asked for and a used one skipped: the truth decides, the memory only saves looking for it. Before a set is called
//! full, all of it is looked at.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::config::range::{Range, RangeSet};

/// A queue that is longer gives what it has before a fresh address: in a big range it would grow for ever.
const LONG_QUEUE: u64 = 1024;

/// A queue that claims to be longer than this isn't believed.
const LONGEST_QUEUE: u64 = 1 << 20;

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

impl Cursor {
    /// Whether it can be what was written.
    pub(crate) fn is_plausible(&self) -> bool {
        self.tail.checked_sub(self.head).is_some_and(|length| length <= LONGEST_QUEUE) && self.tail < u64::MAX
    }

    /// Whether the walk is over and nothing was released since; told without a look at any address.
    pub(crate) fn is_exhausted(&self, set: &RangeSet) -> bool {
        self.head >= self.tail && next_fresh(set, self.last).is_none()
    }
}

/// How an address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody has it, and nothing is known of anybody who had it.
    Free,
    /// An attachment has it.
    Used,
    /// It was released at `since` and put into the queue at `entry`.
    Released { entry: u64, since: Duration, cooling: bool },
}

/// What an allocation has to ask its store.
pub(crate) trait Ledger {
    type Error;
    /// How `address` stands.
    fn standing(&mut self, address: IpAddr) -> Result<Standing, Self::Error>;
    /// The entry of the queue of released addresses with this number, if it is there.
    fn released(&mut self, number: u64) -> Result<Option<IpAddr>, Self::Error>;
}

/// Picks an address of `set` and moves `cursor` past it; `None` if all are in use.
///
/// # Errors
///
/// Those of the ledger.
pub(crate) fn pick<L: Ledger>(set: &RangeSet, cursor: &mut Cursor, ledger: &mut L) -> Result<Option<IpAddr>, L::Error> {
    if cursor.tail.saturating_sub(cursor.head) > LONG_QUEUE
        && let Some(address) = next_released(set, cursor, ledger, Wanted::Cooled)?
    {
        return Ok(Some(address));
    }
    while let Some(address) = next_fresh(set, cursor.last) {
        cursor.last = Some(address);
        if let Standing::Free | Standing::Released { cooling: false, .. } = ledger.standing(address)? {
            return Ok(Some(address));
        }
    }
    match next_released(set, cursor, ledger, Wanted::Any)? {
        None => look_at_all(set, ledger),
        found => Ok(found),
    }
}

/// Which entry of the queue will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    /// Not one that was released a moment ago.
    Cooled,
}

/// Takes the first entry of the queue that still means something.
fn next_released<L: Ledger>(
    set: &RangeSet,
    cursor: &mut Cursor,
    ledger: &mut L,
    wanted: Wanted,
) -> Result<Option<IpAddr>, L::Error> {
    while cursor.head < cursor.tail {
        let number = cursor.head;
        // An entry of a range that the config no longer has is dropped.
        if let Some(address) = ledger.released(number)?.filter(|address| set.range_of(*address).is_some()) {
            match ledger.standing(address)? {
                Standing::Released { entry, cooling, .. } if entry == number => {
                    if cooling && wanted == Wanted::Cooled {
                        return Ok(None);
                    }
                    cursor.head += 1;
                    return Ok(Some(address));
                }
                Standing::Free => {
                    cursor.head += 1;
                    return Ok(Some(address));
                }
                // In use again, or released again and further behind.
                Standing::Used | Standing::Released { .. } => {}
            }
        }
        cursor.head += 1;
    }
    Ok(None)
}

/// The address that the walk and the queue have lost, the longest released one if there are several.
fn look_at_all<L: Ledger>(set: &RangeSet, ledger: &mut L) -> Result<Option<IpAddr>, L::Error> {
    let mut oldest: Option<(Duration, IpAddr)> = None;
    let mut last = None;
    while let Some(address) = next_fresh(set, last) {
        last = Some(address);
        match ledger.standing(address)? {
            Standing::Free | Standing::Released { cooling: false, .. } => return Ok(Some(address)),
            Standing::Released { since, .. } if oldest.is_none_or(|(other, _)| since < other) => {
                oldest = Some((since, address));
            }
            Standing::Used | Standing::Released { .. } => {}
        }
    }
    Ok(oldest.map(|(_, address)| address))
}

/// The address after `last` in the set, range by range. Past a range that the set no longer has, it starts over.
fn next_fresh(set: &RangeSet, last: Option<IpAddr>) -> Option<IpAddr> {
    let Some(last) = last else { return set.0.first().map(Range::start) };
    let Some(index) = set.0.iter().position(|range| range.offers(last)) else { return next_fresh(set, None) };
    set.0[index].after(last).or_else(|| set.0.get(index + 1).map(Range::start))
}

#[cfg(test)]
mod tests;
