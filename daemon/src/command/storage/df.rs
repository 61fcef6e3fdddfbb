//! `keelson storage df`.

use clap::Args;
use keelson_csi::operator::{PoolReport, df};

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
    print(&text)
}

fn columns(pool: &PoolReport) -> [String; 15] {
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
        pool.volumes.to_string(),
        pool.snapshots.to_string(),
        yes(pool.shares_blocks).to_owned(),
        yes(pool.enforces_sizes).to_owned(),
        pool.state.as_str().to_owned(),
        plain(&pool.path),
    ]
}
