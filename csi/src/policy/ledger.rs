//! What a pool has promised, and how much of it is taken already.
//!
//! Volumes and snapshots that came from one another share blocks: a block counts as taken once, however many show it. Such
//! relatives form a *family*. What a family has taken is told from below, by what each member has alone and by the most
//! that any one member shares: so what is still outstanding is never told too low. What is shared with a template isn't
//! taken: it is the template's, and overwriting it takes space of one's own.

use std::collections::{BTreeSet, HashMap, HashSet};

/// Space that one volume or snapshot shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Bytes that nothing else shows: deleting it frees them.
    pub(crate) exclusive: u64,
    /// Bytes that others show as well.
    pub(crate) shared: u64,
}

/// The promises of one pool.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    items: HashMap<String, Item>,
    families: HashMap<String, Family>,
    promised: u64,
    taken: u64,
    stale: HashSet<String>,
}

#[derive(Debug)]
struct Item {
    family: String,
    promise: u64,
    /// At most so many of its bytes are shared with a template.
    template: u64,
    figures: Figures,
}

#[derive(Debug, Default)]
struct Family {
    members: BTreeSet<String>,
    promised: u64,
    taken: u64,
    /// Counts what changed who shares what: figures that were measured before don't fit any more.
    epoch: u64,
}

impl Ledger {
    /// Adds an item that was promised `promise` bytes. What it takes is to be measured.
    ///
    /// At most `template` of its bytes are those of a template.
    pub(crate) fn insert(&mut self, key: &str, family: &str, promise: u64, template: u64) {
        self.remove(key);
        self.items
            .insert(key.to_owned(), Item { family: family.to_owned(), promise, template, figures: Figures::default() });
        self.families.entry(family.to_owned()).or_default().members.insert(key.to_owned());
        self.stale.insert(key.to_owned());
        self.settle(family);
    }

    /// Adds an item that was cut from `source` and shares all its blocks: those are nobody's alone any more.
    pub(crate) fn insert_cut(&mut self, key: &str, source: &str, family: &str, promise: u64, template: u64) {
        self.insert(key, family, promise, template);
        let Some(source) = self.items.get_mut(source) else { return };
        let figures = &mut source.figures;
        *figures = Figures { exclusive: 0, shared: figures.shared.saturating_add(figures.exclusive) };
        let shared = figures.shared;
        if let Some(item) = self.items.get_mut(key) {
            item.figures = Figures { exclusive: 0, shared };
        }
        self.reconsider(family);
    }

    /// Changes what an item was promised.
    pub(crate) fn promise(&mut self, key: &str, promise: u64) {
        let Some(item) = self.items.get_mut(key) else { return };
        item.promise = promise;
        let family = item.family.clone();
        self.settle(&family);
    }

    /// Takes an item out. Its relatives may have alone now what they shared with it.
    pub(crate) fn remove(&mut self, key: &str) {
        self.stale.remove(key);
        let Some(item) = self.items.remove(key) else { return };
        if let Some(family) = self.families.get_mut(&item.family) {
            family.members.remove(key);
        }
        self.reconsider(&item.family);
    }

    /// Marks an item as one that may have changed.
    pub(crate) fn touch(&mut self, key: &str) {
        if self.items.contains_key(key) {
            self.stale.insert(key.to_owned());
        }
    }

    /// The items whose figures are to be measured, each with what [`Ledger::measured`] needs to know.
    pub(crate) fn stale(&self) -> Vec<(String, u64)> {
        self.stale.iter().filter_map(|key| Some((key.clone(), self.epoch_of(key)?))).collect()
    }

    /// Whether nobody is related to the item: then nothing but a common template can share its blocks.
    pub(crate) fn is_alone(&self, key: &str) -> bool {
        let family = self.items.get(key).and_then(|item| self.families.get(&item.family));
        family.is_none_or(|family| family.members.len() < 2)
    }

    /// Enters what was measured, unless who shares what has changed since `epoch` was told.
    pub(crate) fn measured(&mut self, key: &str, epoch: u64, figures: Figures) {
        if self.epoch_of(key) != Some(epoch) {
            return;
        }
        self.stale.remove(key);
        if let Some(item) = self.items.get_mut(key) {
            item.figures = figures;
            let family = item.family.clone();
            self.settle(&family);
        }
    }

    /// Enters what was measured once more, as far as it is less.
    pub(crate) fn lowered(&mut self, key: &str, epoch: u64, again: Figures) {
        let Some(before) = self.figures(key) else { return };
        let Figures { exclusive, shared } = again;
        let least = Figures { exclusive: before.exclusive.min(exclusive), shared: before.shared.min(shared) };
        self.measured(key, epoch, least);
    }

    /// The figures of an item as they were last measured.
    pub(crate) fn figures(&self, key: &str) -> Option<Figures> {
        self.items.get(key).map(|item| item.figures)
    }

    /// Everything that was promised, in bytes.
    pub(crate) fn promised(&self) -> u64 {
        self.promised
    }

    /// At least so many of the promised bytes are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    fn epoch_of(&self, key: &str) -> Option<u64> {
        let item = self.items.get(key)?;
        self.families.get(&item.family).map(|family| family.epoch)
    }

    /// Who shares what within the family has changed: everybody is to be measured.
    fn reconsider(&mut self, id: &str) {
        if let Some(family) = self.families.get_mut(id) {
            family.epoch += 1;
            self.stale.extend(family.members.iter().cloned());
            // What the last one shared with its relatives says nothing about what it shares with a template.
            if family.members.len() == 1
                && let Some(item) = family.members.first().and_then(|key| self.items.get_mut(key))
            {
                item.figures = Figures::default();
            }
        }
        self.settle(id);
    }

    /// Brings the sums up to date with the family's members.
    fn settle(&mut self, id: &str) {
        let Some(family) = self.families.get_mut(id) else { return };
        let members = family.members.iter().filter_map(|key| self.items.get(key));
        let (mut promised, mut exclusive, mut shared, mut template) = (0_u64, 0_u64, 0_u64, 0_u64);
        for item in members {
            promised = promised.saturating_add(item.promise);
            exclusive = exclusive.saturating_add(item.figures.exclusive);
            shared = shared.max(item.figures.shared);
            template = template.max(item.template);
        }
        // With nobody else in the family, all that is shared is a template's.
        let shared = if family.members.len() < 2 { 0 } else { shared.saturating_sub(template) };
        // Nothing beyond a promise was ever taken from what others are promised.
        let taken = exclusive.saturating_add(shared).min(promised);
        self.promised = self.promised.saturating_sub(family.promised).saturating_add(promised);
        self.taken = self.taken.saturating_sub(family.taken).saturating_add(taken);
        (family.promised, family.taken) = (promised, taken);
        if family.members.is_empty() {
            self.families.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn family(number: u8) -> String {
        format!("f{number}")
    }

    fn measure(ledger: &mut Ledger, key: &str, exclusive: u64, shared: u64) {
        let epoch = ledger.epoch_of(key).unwrap();
        ledger.measured(key, epoch, Figures { exclusive, shared });
    }

    #[test]
    fn a_cut_takes_nothing_and_is_promised_all_it_shows() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        measure(&mut ledger, "v", 60, 0);
        assert_eq!((ledger.promised(), ledger.taken()), (100, 60));
        ledger.insert_cut("s", "v", "f1", 60, 0);
        assert_eq!((ledger.promised(), ledger.taken()), (160, 60));
        assert_eq!(ledger.stale().len(), 2);
        // The volume was overwritten: now each has its own.
        measure(&mut ledger, "v", 60, 0);
        measure(&mut ledger, "s", 60, 0);
        assert_eq!((ledger.promised(), ledger.taken()), (160, 120));
        ledger.remove("s");
        assert_eq!((ledger.promised(), ledger.taken()), (100, 0));
        assert_eq!(ledger.stale().len(), 1);
        measure(&mut ledger, "v", 60, 0);
        assert_eq!((ledger.promised(), ledger.taken()), (100, 60));
    }

    #[test]
    fn a_promise_can_change_and_an_item_be_measured_anew() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        measure(&mut ledger, "v", 60, 5);
        assert_eq!(ledger.figures("v"), Some(Figures { exclusive: 60, shared: 5 }));
        assert_eq!((ledger.figures("w"), ledger.stale().len()), (None, 0));
        ledger.touch("v");
        ledger.touch("w");
        assert_eq!(ledger.stale().len(), 1);
        ledger.promise("v", 50);
        assert_eq!((ledger.promised(), ledger.taken()), (50, 50));
    }

    #[test]
    fn who_has_relatives_is_not_alone() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        ledger.insert("w", "f2", 100, 0);
        assert!(ledger.is_alone("v"));
        ledger.insert_cut("s", "v", "f1", 60, 0);
        assert!(!ledger.is_alone("v") && !ledger.is_alone("s") && ledger.is_alone("w"));
        ledger.remove("v");
        assert!(ledger.is_alone("s"));
    }

    #[test]
    fn what_is_a_templates_is_not_taken() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 30);
        measure(&mut ledger, "v", 10, 30);
        assert_eq!(ledger.taken(), 10);
        ledger.insert_cut("s", "v", "f1", 40, 30);
        // 30 of the 40 that both show are the template's.
        assert_eq!(ledger.taken(), 10);
        measure(&mut ledger, "v", 0, 40);
        measure(&mut ledger, "s", 0, 40);
        assert_eq!(ledger.taken(), 10);
    }

    #[test]
    fn who_is_left_alone_is_measured_as_if_for_the_first_time() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        measure(&mut ledger, "v", 60, 0);
        ledger.insert_cut("s", "v", "f1", 60, 0);
        measure(&mut ledger, "v", 0, 60);
        ledger.remove("s");
        assert_eq!(ledger.figures("v"), Some(Figures::default()));
    }

    #[test]
    fn of_two_looks_the_smaller_counts_for_each_item() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        ledger.insert("w", "f2", 100, 0);
        measure(&mut ledger, "v", 60, 0);
        measure(&mut ledger, "w", 10, 0);
        let again = |exclusive| Figures { exclusive, shared: 0 };
        // One discarded what the other wrote.
        ledger.lowered("v", ledger.epoch_of("v").unwrap(), again(10));
        ledger.lowered("w", ledger.epoch_of("w").unwrap(), again(60));
        assert_eq!(ledger.taken(), 20);
    }

    #[test]
    fn figures_from_before_a_cut_are_not_believed() {
        let mut ledger = Ledger::default();
        ledger.insert("v", "f1", 100, 0);
        let (_, epoch) = ledger.stale().remove(0);
        ledger.insert_cut("s", "v", "f1", 60, 0);
        ledger.measured("v", epoch, Figures { exclusive: 60, shared: 0 });
        assert_eq!(ledger.taken(), 0);
        assert!(ledger.stale().iter().any(|(key, _)| key == "v"));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_items(steps in proptest::collection::vec((0_u8..6, 0_u8..8, 0_u8..8, 0_u64..1000), 0..60)) {
            let mut ledger = Ledger::default();
            for (what, one, other, bytes) in steps {
                let (key, source, its_family) = (format!("i{one}"), format!("i{other}"), family(other % 3));
                match what {
                    0 => ledger.insert(&key, &its_family, bytes, 0),
                    1 if key != source => {
                        let of = ledger.items.get(&source).map_or(its_family, |item| item.family.clone());
                        ledger.insert_cut(&key, &source, &of, bytes, 0);
                    }
                    2 => ledger.remove(&key),
                    3 => ledger.promise(&key, bytes),
                    4 if ledger.items.contains_key(&key) => measure(&mut ledger, &key, bytes / 2, bytes),
                    _ => ledger.touch(&key),
                }
                let promised: u64 = ledger.items.values().map(|item| item.promise).sum();
                prop_assert_eq!(ledger.promised(), promised);
                prop_assert!(ledger.taken() <= promised);
                let taken: u64 = ledger.families.values().map(|family| family.taken).sum();
                prop_assert_eq!(ledger.taken(), taken);
                let members: usize = ledger.families.values().map(|family| family.members.len()).sum();
                prop_assert_eq!(members, ledger.items.len());
                prop_assert!(ledger.families.values().all(|family| !family.members.is_empty()));
                prop_assert!(ledger.stale.iter().all(|key| ledger.items.contains_key(key)));
            }
        }
    }
}
