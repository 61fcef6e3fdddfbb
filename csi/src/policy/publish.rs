//! What a second NodePublishVolume of the same volume means.

use serde::{Deserialize, Serialize};

use super::{AccessMode, Capability, TargetPath};

/// One publication: where, and the arguments that shape it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Publication {
    pub(crate) target: TargetPath,
    pub(crate) capability: Capability,
    pub(crate) read_only: bool,
}

impl Publication {
    /// How it differs from `wanted` at the same path.
    pub(crate) fn difference(&self, wanted: &Self) -> String {
        let name = |read_only| if read_only { "read-only" } else { "for writing" };
        if self.read_only != wanted.read_only {
            return format!("{}, not {}", name(self.read_only), name(wanted.read_only));
        }
        self.capability.difference(&wanted.capability)
    }
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<'a> {
    /// Publish it.
    Proceed,
    /// It is published just so.
    Done,
    /// ALREADY_EXISTS: it is published there in another way, this one.
    Different(&'a Publication),
    /// FAILED_PRECONDITION: it is published there, and it may be published only once.
    Elsewhere(&'a TargetPath),
}

/// The table of the CSI spec, NodePublishVolume, for a plugin with SINGLE_NODE_MULTI_WRITER:
///
/// | | T1=T2, P1=P2 | T1=T2, P1!=P2 | T1!=T2 |
/// |---|---|---|---|
/// | SINGLE_NODE_MULTI_WRITER | OK | ALREADY_EXISTS | OK |
/// | the other SINGLE_NODE modes | OK | ALREADY_EXISTS | FAILED_PRECONDITION |
///
/// `existing` is what is published in truth: recorded, and still mounted.
pub(crate) fn second_publish<'a>(existing: &'a [Publication], wanted: &Publication) -> Verdict<'a> {
    if let Some(same) = existing.iter().find(|publication| publication.target == wanted.target) {
        return if same == wanted { Verdict::Done } else { Verdict::Different(same) };
    }
    let shared = |publication: &Publication| publication.capability.mode == AccessMode::MultiWriter;
    match existing.iter().find(|publication| !(shared(publication) && shared(wanted))) {
        Some(other) => Verdict::Elsewhere(&other.target),
        None => Verdict::Proceed,
    }
}

/// Whether what was staged in one mode may be published in the other: in the same, read-only, or in any if it was
/// staged for many writers.
pub(crate) fn may_publish(staged: AccessMode, wanted: AccessMode) -> bool {
    staged == wanted || staged == AccessMode::MultiWriter || wanted == AccessMode::ReaderOnly
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Access, capability::tests::mount};

    fn publication(target: &str, mode: AccessMode, access: Access, read_only: bool) -> Publication {
        let target = TargetPath::try_from(target.to_owned()).unwrap();
        Publication { target, capability: Capability { mode, access }, read_only }
    }

    fn any_publication() -> impl Strategy<Value = Publication> {
        use AccessMode::{MultiWriter, ReaderOnly, SingleWriter, Writer};
        (
            proptest::sample::select(vec!["/a", "/b", "/c"]),
            proptest::sample::select(vec![Writer, ReaderOnly, SingleWriter, MultiWriter]),
            proptest::sample::select(vec![Access::Block, mount("", &[]), mount("", &["noexec"])]),
            any::<bool>(),
        )
            .prop_map(|(target, mode, access, read_only)| publication(target, mode, access, read_only))
    }

    #[test]
    fn the_table() {
        use AccessMode::{MultiWriter, ReaderOnly, SingleWriter, Writer};
        for mode in [Writer, ReaderOnly, SingleWriter, MultiWriter] {
            let existing = [publication("/a", mode, mount("", &[]), false)];
            assert_eq!(second_publish(&[], &existing[0]), Verdict::Proceed);
            assert_eq!(second_publish(&existing, &existing[0]), Verdict::Done);
            let differently = publication("/a", mode, mount("", &[]), true);
            assert_eq!(second_publish(&existing, &differently), Verdict::Different(&existing[0]));
            let other_flags = publication("/a", mode, mount("", &["noexec"]), false);
            assert_eq!(second_publish(&existing, &other_flags), Verdict::Different(&existing[0]));
            let elsewhere = publication("/b", mode, mount("", &[]), false);
            let expected = if mode == MultiWriter { Verdict::Proceed } else { Verdict::Elsewhere(&existing[0].target) };
            assert_eq!(second_publish(&existing, &elsewhere), expected, "{mode:?}");
        }
    }

    #[test]
    fn a_difference_names_what_is_and_what_was_asked_but_no_mount_option() {
        use AccessMode::{MultiWriter, Writer};
        let one = publication("/a", Writer, mount("xfs", &["secret=1"]), false);
        let differs = |mode, access, read_only| one.difference(&publication("/a", mode, access, read_only));
        assert_eq!(differs(Writer, mount("xfs", &["secret=2"]), false), "other mount options");
        assert_eq!(differs(Writer, mount("xfs", &["secret=1"]), true), "for writing, not read-only");
        let expected = "a mount of xfs as SINGLE_NODE_WRITER, not a block device as SINGLE_NODE_MULTI_WRITER";
        assert_eq!(differs(MultiWriter, Access::Block, false), expected);
    }

    #[test]
    fn a_publication_exceeds_nothing_that_was_staged() {
        use AccessMode::{MultiWriter, ReaderOnly, SingleWriter, Writer};
        for mode in [Writer, ReaderOnly, SingleWriter, MultiWriter] {
            assert!(may_publish(mode, mode) && may_publish(MultiWriter, mode) && may_publish(mode, ReaderOnly));
        }
        for (staged, wanted) in [
            (Writer, MultiWriter),
            (Writer, SingleWriter),
            (SingleWriter, MultiWriter),
            (SingleWriter, Writer),
            (ReaderOnly, Writer),
            (ReaderOnly, MultiWriter),
        ] {
            assert!(!may_publish(staged, wanted), "{staged:?} {wanted:?}");
        }
    }

    proptest! {
        #[test]
        fn no_order_of_calls_gives_a_single_use_volume_two_targets(
            calls in proptest::collection::vec(any_publication(), 0..12)
        ) {
            let mut published: Vec<Publication> = Vec::new();
            for call in calls {
                if second_publish(&published, &call) == Verdict::Proceed {
                    published.push(call);
                }
            }
            if published.len() > 1 {
                prop_assert!(published.iter().all(|one| one.capability.mode == AccessMode::MultiWriter));
            }
            let mut targets: Vec<_> = published.iter().map(|one| &one.target).collect();
            targets.dedup();
            prop_assert_eq!(targets.len(), published.len());
        }
    }
}
