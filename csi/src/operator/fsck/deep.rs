//! What each filesystem's own program says about an image that nobody uses.

use keelson_host::error_chain;

use super::super::{Finding, picture::Picture, survey::Item};
use crate::{
    Helper, StorageSettings,
    kernel::{loop_device, program_exists},
    policy::{Content, FilesystemType},
};

/// The most that is quoted of what a program wrote.
const LONGEST_QUOTE: usize = 2000;

/// The finding, if there is one, and whether the image was checked at all.
pub(super) fn examine(
    item: &Item<'_>,
    settings: &StorageSettings,
    picture: &Picture,
    helper: &Helper,
) -> (Option<Finding>, bool) {
    let Content::Filesystem { filesystem, .. } = item.content() else { return (None, false) };
    let path = item.path();
    let of = (item.title(), path.display().to_string());
    let skipped = |reason: String, remedy: &str| (Some(Finding::note("not-checked", &of, reason, remedy)), false);
    if !picture.loops_of(item).is_empty() {
        return skipped("it is in use, so its filesystem changes".to_owned(), "check it when no Pod uses it");
    }
    let (program, arguments): (&str, &[&str]) = match filesystem {
        FilesystemType::Ext4 => ("e2fsck", &["-fn"]),
        FilesystemType::Xfs => ("xfs_repair", &["-n"]),
        FilesystemType::Btrfs => ("btrfs", &["check", "--readonly"]),
    };
    if !program_exists(program) {
        return skipped(format!("there is no program {program} here"), "install it, or run the driver's image");
    }
    let arguments = arguments.iter().map(|one| (*one).into()).chain([path.clone().into_os_string()]);
    let judged: Result<_, _> = helper.judge(program, arguments.collect::<Vec<std::ffi::OsString>>());
    let text = match judged {
        Ok(None) => return (None, true),
        Ok(Some(text)) => text,
        Err(error) => return skipped(error_chain(&error), "try again, with more time or less load"),
    };
    // It may have been staged, or deleted, meanwhile; then what was read was of several instants.
    let in_use = loop_device::find_anew(&settings.root, &path).map_or(true, |devices| !devices.is_empty());
    if in_use || item.is_gone() {
        return skipped("it was taken into use while it was checked".to_owned(), "check it when no Pod uses it");
    }
    if has_journal_to_replay(&text) {
        let problem = "it was not unmounted cleanly, or cut while in use: its journal is still to be replayed, so nothing \
                       can be told without changing it";
        return skipped(problem.to_owned(), "the next stage replays it; to check a snapshot, make a volume from it");
    }
    let remedy = "restore it from a snapshot or a backup; a repair (`e2fsck -f`, `xfs_repair`, `btrfs check --repair`) is \
                  for a copy of the image";
    (Some(Finding::error("filesystem-damaged", &of, format!("{program}: {}", quote(&text)), remedy)), true)
}

/// What e2fsck and `xfs_repair` say when they had to pass over the journal.
fn has_journal_to_replay(text: &str) -> bool {
    text.contains("skipping journal recovery") || text.contains("valuable metadata changes in a log")
}

/// The beginning of what a program wrote, on one line.
fn quote(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().take(LONGEST_QUOTE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_to_replay_is_no_damage() {
        assert!(has_journal_to_replay(
            "Warning: skipping journal recovery because doing a read-only filesystem check."
        ));
        assert!(!has_journal_to_replay("Pass 1: Checking inodes, blocks, and sizes"));
    }

    #[test]
    fn a_quote_is_one_line_and_short() {
        assert_eq!(quote(" a\n\nb \n"), "a; b");
        assert_eq!(quote(&"x".repeat(5000)).len(), LONGEST_QUOTE);
    }
}
