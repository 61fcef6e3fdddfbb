//! Sets of CPUs in the form that the kernel, runtimes and people write them.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Ids that a list may name, 0 to 65,535: eight times the CPUs that Linux can be configured for (`NR_CPUS`), and few
/// enough that `0-65535` written by an attacker costs no memory to speak of.
const MOST_IDS: u32 = 1 << 16;

/// A set of CPU ids (or of NUMA node ids, whose lists the kernel writes in the same way).
///
/// Its text is the kernel's list format (cpuset(7), "List format"): decimal ids and inclusive ranges, ascending,
/// separated by commas; the empty set is the empty string.
///
/// ```
/// use keelson_host::CpuSet;
/// let set: CpuSet = "8,0-3".parse()?;
/// assert_eq!(set.len(), 5);
/// assert_eq!(set.to_string(), "0-3,8");
/// # Ok::<(), keelson_host::ParseCpuSetError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuSet(BTreeSet<u32>);

/// Why a text is no CPU list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCpuSetError {
    /// A part between commas is neither an id nor a range.
    #[error("{part:?} in a CPU list is neither an id such as 8 nor a range such as 0-3")]
    Syntax {
        /// The part as it was written.
        part: String,
    },
    /// A range ends before it starts.
    #[error("the range {part:?} in a CPU list ends before it starts")]
    Reversed {
        /// The range as it was written.
        part: String,
    },
    /// An id is greater than any that a kernel can have.
    #[error("{part:?} in a CPU list exceeds the greatest id, 65535")]
    TooLarge {
        /// The id or range as it was written.
        part: String,
    },
}

impl CpuSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many CPUs it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it holds `id`.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    /// Adds `id`; whether it is new.
    pub fn insert(&mut self, id: u32) -> bool {
        self.0.insert(id)
    }

    /// Takes `id` out; whether it was there.
    pub fn remove(&mut self, id: u32) -> bool {
        self.0.remove(&id)
    }

    /// The least id.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// The greatest id.
    #[must_use]
    pub fn last(&self) -> Option<u32> {
        self.0.last().copied()
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + ExactSizeIterator + Clone + '_ {
        self.0.iter().copied()
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Whether everything in it is in `other` as well.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// Whether nothing in it is in `other`.
    #[must_use]
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.0.is_disjoint(&other.0)
    }
}

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    /// Parts may overlap, stand in any order and have blanks around them, as the kernel allows when it reads a list.
    fn from_str(text: &str) -> Result<Self, ParseCpuSetError> {
        let mut ids = BTreeSet::new();
        if text.trim().is_empty() {
            return Ok(Self(ids));
        }
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (id(first, part)?, id(last, part)?);
            if first > last {
                return Err(ParseCpuSetError::Reversed { part: part.to_owned() });
            }
            ids.extend(first..=last);
        }
        Ok(Self(ids))
    }
}

fn id(digits: &str, part: &str) -> Result<u32, ParseCpuSetError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseCpuSetError::Syntax { part: part.to_owned() });
    }
    match digits.parse() {
        Ok(id) if id < MOST_IDS => Ok(id),
        _ => Err(ParseCpuSetError::TooLarge { part: part.to_owned() }),
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|next| last.checked_add(1) == Some(*next)) {
                last = next;
            }
            if first == last {
                write!(formatter, "{separator}{first}")?;
            } else {
                write!(formatter, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CpuSet({self})")
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl Extend<u32> for CpuSet {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, ids: I) {
        self.0.extend(ids);
    }
}

impl<const N: usize> From<[u32; N]> for CpuSet {
    fn from(ids: [u32; N]) -> Self {
        Self(BTreeSet::from(ids))
    }
}

impl<'a> IntoIterator for &'a CpuSet {
    type Item = u32;
    type IntoIter = std::iter::Copied<std::collections::btree_set::Iter<'a, u32>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().copied()
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, canonical: &str) {
        assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), canonical);
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(text.parse::<CpuSet>().unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        check("", "");
        check("\n", "");
        check("0\n", "0");
        check("0-3,8", "0-3,8");
        check("0-65535", "0-65535");
    }

    #[test]
    fn what_people_write_is_read() {
        check("3,1,2", "1-3");
        check("0-2, 2-4", "0-4");
        check(" 007 ", "7");
    }

    #[test]
    fn anything_else_is_named() {
        for part in ["", "a", "-1", "1-", "+1", "1-2-3", "0x3", "1 2", "1:2"] {
            let expected = format!("{part:?} in a CPU list is neither an id such as 8 nor a range such as 0-3");
            check_error(&format!("0,{part}"), &expected);
        }
        check_error("3-1", "the range \"3-1\" in a CPU list ends before it starts");
        check_error("0-4294967295", "\"0-4294967295\" in a CPU list exceeds the greatest id, 65535");
        check_error("99999999999999999999", "\"99999999999999999999\" in a CPU list exceeds the greatest id, 65535");
    }

    #[test]
    fn serialized_as_text() {
        let set = CpuSet::from([0, 1, 9]);
        assert_eq!(serde_json::to_string(&set).unwrap(), "\"0-1,9\"");
        assert_eq!(serde_json::from_str::<CpuSet>("\"0-1,9\"").unwrap(), set);
        assert!(serde_json::from_str::<CpuSet>("\"x\"").unwrap_err().to_string().starts_with("\"x\" in a CPU list"));
    }

    proptest! {
        #[test]
        fn text_leads_back_to_the_set(ids in proptest::collection::btree_set(0..MOST_IDS, 0..40)) {
            let set: CpuSet = ids.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set.clone()));
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), ids);
        }

        #[test]
        fn any_text_is_a_set_or_an_error(text in "[0-9, -]{0,30}|\\PC{0,30}") {
            if let Ok(set) = text.parse::<CpuSet>() {
                prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
            }
        }

        #[test]
        fn set_operations_agree_with_membership(
            a in proptest::collection::btree_set(0..20_u32, 0..20),
            b in proptest::collection::btree_set(0..20_u32, 0..20),
        ) {
            let (a, b): (CpuSet, CpuSet) = (a.into_iter().collect(), b.into_iter().collect());
            for id in 0..20 {
                let (in_a, in_b) = (a.contains(id), b.contains(id));
                prop_assert_eq!(a.union(&b).contains(id), in_a || in_b);
                prop_assert_eq!(a.intersection(&b).contains(id), in_a && in_b);
                prop_assert_eq!(a.difference(&b).contains(id), in_a && !in_b);
            }
            prop_assert_eq!(a.is_subset(&b), a.difference(&b).is_empty());
            prop_assert_eq!(a.is_disjoint(&b), a.intersection(&b).is_empty());
        }
    }
}
