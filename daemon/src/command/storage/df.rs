//! `keelson storage df`.

use clap::Args;
use keelson_csi::operator::{PoolReport, PoolState, df};

use super::{NodeArguments, or_dash, plain, size_or_dash, yes};
use crate::{
    command::output::{print, print_json, table},
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct DfArguments {
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &DfArguments) -> Result<(), Failure> {
    let pools = df(&arguments.node.settings()?);
    if arguments.node.is_json() {
        return print_json(&pools);
    }
    let header = [
        "POOL",
        "KIND",
        "FS",
        "SIZE",
        "FREE",
        "RESERVE",
        "PROMISED",
        "TAKEN",
        "AVAILABLE",
        "VOLUMES",
        "SNAPSHOTS",
        "SHARES",
        "ENFORCES",
        "STATE",
        "PATH",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(pools.iter().map(columns));
    let mut text = table(&rows);
    for pool in &pools {
        if let Some(reason) = &pool.reason {
            text.push_str(&format!("{}: {}\n", plain(&pool.name), plain(reason)));
        }
        if pool.damaged > 0 {
            text.push_str(&format!(
                "{}: {} records can't be read; see `keelson storage fsck`\n",
                pool.name, pool.damaged
            ));
        }
    }
    for (at, pool) in pools.iter().enumerate() {
        let others = &pool.shares_filesystem_with;
        if !others.is_empty() && !pools[..at].iter().any(|earlier| others.contains(&earlier.name)) {
            text.push_str(&format!(
                "{}, {}: on one filesystem, whose space they share\n",
                pool.name,
                others.join(", ")
            ));
        }
    }
    print(&text)
}

fn columns(pool: &PoolReport) -> [String; 15] {
    let count = |number: usize| {
        // Of what isn't there nothing is known.
        if pool.state == PoolState::Unavailable { "-".to_owned() } else { number.to_string() }
    };
    let space = |part: fn(&keelson_csi::operator::SpaceReport) -> u64| size_or_dash(pool.space.as_ref().map(part));
    [
        plain(&pool.name),
        pool.kind.as_str().to_owned(),
        or_dash(pool.filesystem.as_deref()),
        space(|space| space.total_bytes),
        space(|space| space.free_bytes),
        space(|space| space.reserve_bytes),
        space(|space| space.promised_bytes),
        space(|space| space.taken_bytes),
        space(|space| space.available_bytes),
        count(pool.volumes),
        count(pool.snapshots),
        yes(pool.shares_blocks).to_owned(),
        yes(pool.enforces_sizes).to_owned(),
        pool.state.as_str().to_owned(),
        plain(&pool.path),
    ]
}
