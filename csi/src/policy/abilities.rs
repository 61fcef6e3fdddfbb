//! What a pool can do.

use crate::config::PoolKind;

/// What a pool's filesystem showed that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) kind: PoolKind,
    /// Whether a copy shares the blocks of its source, and so is made at once and of one instant.
    pub(crate) shares_blocks: bool,
    /// Whether no volume can grow beyond its size.
    pub(crate) enforces_sizes: bool,
}

impl Abilities {
    /// What every pool of the kind can do, whatever its filesystem.
    pub(crate) fn least(kind: PoolKind) -> Self {
        match kind {
            PoolKind::Image => Self { kind, shares_blocks: false, enforces_sizes: true },
            PoolKind::Subvolume => Self { kind, shares_blocks: true, enforces_sizes: true },
            PoolKind::Directory => Self { kind, shares_blocks: false, enforces_sizes: false },
        }
    }

    /// Whether it makes snapshots and clones: a directory's can't be of one instant, so there they are refused.
    pub(crate) fn copies(self) -> bool {
        match self.kind {
            PoolKind::Image | PoolKind::Subvolume => true,
            PoolKind::Directory => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_not_copied() {
        let copies = |kind| Abilities::least(kind).copies();
        assert!(copies(PoolKind::Image) && copies(PoolKind::Subvolume) && !copies(PoolKind::Directory));
    }
}
