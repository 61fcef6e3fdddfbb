//! Which project ids the volumes of directory pools get.

use std::{collections::BTreeSet, ops::RangeInclusive};

/// Ours. kubelet takes ids from 1048577 on for its own quotas, and people small ones for /etc/projects.
pub(crate) const PROJECTS: RangeInclusive<u32> = 0x4B00_0000..=0x4BFF_FFFF;

/// The smallest id of [`PROJECTS`] that no volume has by the records of all pools of a filesystem, and that the
/// filesystem doesn't know either: files that are deleted, but not freed yet, still count for the id of their
/// volume. None if all are taken.
pub(crate) fn free_project(recorded: &[u32], known: &[u32]) -> Option<u32> {
    free_of(PROJECTS, recorded, known)
}

fn free_of(range: RangeInclusive<u32>, recorded: &[u32], known: &[u32]) -> Option<u32> {
    let mut taken: Vec<u32> = recorded.iter().chain(known).copied().filter(|id| range.contains(id)).collect();
    taken.sort_unstable();
    taken.dedup();
    // The first gap is where the ids stop counting up from the start of the range.
    range.zip(taken.iter().map(Some).chain(std::iter::repeat(None))).find_map(|(free, taken)| match taken {
        Some(taken) if *taken == free => None,
        _ => Some(free),
    })
}

/// The ids of [`PROJECTS`] that the filesystem knows, but no volume has: what a crash left.
pub(crate) fn leaked_projects(recorded: &[u32], known: &[u32]) -> Vec<u32> {
    let recorded: BTreeSet<u32> = recorded.iter().copied().collect();
    known.iter().copied().filter(|id| PROJECTS.contains(id) && !recorded.contains(id)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: u32 = *PROJECTS.start();

    #[test]
    fn gaps_are_filled_first() {
        assert_eq!(free_project(&[], &[]), Some(FIRST));
        assert_eq!(free_project(&[FIRST], &[FIRST + 2]), Some(FIRST + 1));
        assert_eq!(free_project(&[FIRST + 1], &[FIRST]), Some(FIRST + 2));
        assert_eq!(free_project(&[0, 1, FIRST - 1], &[u32::MAX, FIRST]), Some(FIRST + 1));
    }

    #[test]
    fn the_last_one_is_given_and_no_more() {
        assert_eq!(free_of(5..=7, &[5, 6], &[6]), Some(7));
        assert_eq!(free_of(5..=7, &[5, 6], &[7, 8]), None);
        assert_eq!(free_of(u32::MAX..=u32::MAX, &[], &[u32::MAX]), None);
    }

    /// Ids around the start of the range, so that they meet often.
    fn ids() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(prop_oneof![FIRST - 3..FIRST + 40, any::<u32>()], 0..60)
    }

    proptest! {
        #[test]
        fn what_is_given_is_ours_free_and_the_smallest(recorded in ids(), known in ids()) {
            let taken = |id: &u32| recorded.contains(id) || known.contains(id);
            let given = free_project(&recorded, &known).unwrap();
            prop_assert!(PROJECTS.contains(&given) && !taken(&given));
            prop_assert!((FIRST..given).all(|id| taken(&id)));
        }

        #[test]
        fn what_leaked_is_ours_and_nobodys(recorded in ids(), known in ids()) {
            let leaked = leaked_projects(&recorded, &known);
            prop_assert!(leaked.iter().all(|id| PROJECTS.contains(id) && !recorded.contains(id)));
            let ours = known.iter().filter(|id| PROJECTS.contains(id));
            prop_assert!(ours.clone().all(|id| recorded.contains(id) || leaked.contains(id)));
        }
    }
}
