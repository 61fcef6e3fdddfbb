//! Pages of a list that changes between the calls for them.

use std::str::FromStr;

/// One page, and where the next one starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) entries: Vec<T>,
    /// Empty on the last page.
    pub(crate) next_token: String,
}

/// The token was not one of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("starting_token {0:?} was not given by this driver; start again without one")]
pub(crate) struct InvalidToken(String);

/// A page of at most `max_entries` (0: all) after `starting_token` (empty: from the start). `after` gives at most so many
/// entries whose ids come after one, in the order of their ids; `id` tells an entry's.
///
/// A token is the last id of its page, and ids come in their own order. So an entry that is there all the time is on
/// exactly one page, whatever is made and deleted meanwhile, and no token goes stale.
pub(crate) fn page<Id: FromStr, T, E: From<InvalidToken>>(
    starting_token: &str,
    max_entries: usize,
    after: impl FnOnce(Option<&Id>, usize) -> Result<Vec<T>, E>,
    id: impl Fn(&T) -> String,
) -> Result<Page<T>, E> {
    let start = match starting_token {
        "" => None,
        token => Some(token.parse().map_err(|_| InvalidToken(token.to_owned()))?),
    };
    let count = if max_entries == 0 { usize::MAX } else { max_entries };
    // One more than asked for tells whether there is a next page.
    let mut entries = after(start.as_ref(), count.saturating_add(1))?;
    let more = entries.len() > count;
    entries.truncate(count);
    let next_token = entries.last().filter(|_| more).map(id).unwrap_or_default();
    Ok(Page { entries, next_token })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::VolumeId;

    fn id(number: u16) -> VolumeId {
        format!("v1-{number:032x}").parse().unwrap()
    }

    fn page(numbers: &BTreeSet<u16>, token: &str, max_entries: usize) -> Result<Page<u16>, InvalidToken> {
        let all: Vec<(VolumeId, u16)> = numbers.iter().map(|number| (id(*number), *number)).collect();
        let after = |start: Option<&VolumeId>, count| {
            let comes_after = |(id, _): &&(VolumeId, u16)| start.is_none_or(|start| id > start);
            Ok(all.iter().filter(comes_after).take(count).map(|(_, number)| *number).collect())
        };
        super::page(token, max_entries, after, |number| id(*number).to_string())
    }

    #[test]
    fn a_token_of_others_is_refused() {
        for token in ["invalid-token", "0", "v1-", "../../etc"] {
            assert_eq!(page(&BTreeSet::new(), token, 0), Err(InvalidToken(token.to_owned())));
        }
    }

    #[test]
    fn the_last_page_has_no_token() {
        let all = BTreeSet::from([1, 2, 3, 4]);
        let first = page(&all, "", 2).unwrap();
        assert_eq!(first, Page { entries: vec![1, 2], next_token: id(2).as_str().to_owned() });
        assert_eq!(page(&all, &first.next_token, 2).unwrap(), Page { entries: vec![3, 4], next_token: String::new() });
        assert_eq!(page(&all, "", 0).unwrap().entries, [1, 2, 3, 4]);
        assert_eq!(page(&all, id(9).as_str(), 0).unwrap().entries, [0_u16; 0]);
    }

    proptest! {
        #[test]
        fn whoever_stays_is_listed_exactly_once_under_churn(
            stay in proptest::collection::btree_set(any::<u16>(), 0..40),
            churn in proptest::collection::vec(proptest::collection::btree_set(any::<u16>(), 0..40), 1..60),
            max_entries in 1_usize..7,
        ) {
            let mut token = String::new();
            let mut seen = Vec::new();
            let mut rounds = churn.iter().cycle();
            loop {
                let now: BTreeSet<u16> = stay.union(rounds.next().unwrap()).copied().collect();
                let found = page(&now, &token, max_entries).unwrap();
                prop_assert!(found.entries.len() <= max_entries);
                seen.extend(found.entries);
                if found.next_token.is_empty() {
                    break;
                }
                token = found.next_token;
            }
            prop_assert!(seen.is_sorted());
            for number in stay {
                prop_assert_eq!(seen.iter().filter(|found| **found == number).count(), 1);
            }
        }
    }
}
