//! What each pool has, and how it stands.

use keelson_host::error_chain;

use super::{
    PoolReport, PoolState, SpaceReport,
    survey::{Survey, why},
};
use crate::{
    StorageSettings,
    store::{GroupRecord, Pool, Pools, Sight, SnapshotRecord, StoreError, VolumeRecord},
};

/// Every pool of the config, in its order. A pool that can't be read says why, and holds up none of the others.
#[must_use]
pub fn df(settings: &StorageSettings) -> Vec<PoolReport> {
    let survey = Survey::take(settings);
    // Without the mounts nobody knows the filesystems' types, and that is all.
    let mounts = keelson_host::mounts(&settings.root).unwrap_or_default();
    let filesystem = |pool: &Pool| {
        let below = mounts.iter().filter(|mount| pool.settings.resolved.starts_with(&mount.point));
        // Of two at one point the later one is on top.
        below.max_by_key(|mount| mount.point.iter().count()).map(|mount| mount.kind.clone())
    };
    let reports = survey.each().map(|(pool, sight)| {
        let mut report = blank(pool);
        match sight {
            Ok(Sight::Unused) => report.state = PoolState::Unused,
            Err(error) => report.reason = Some(why(error)),
            Ok(Sight::Pool { read_only, .. }) => {
                report.state = if *read_only { PoolState::ReadOnly } else { PoolState::Available };
                report.filesystem = filesystem(pool);
                let others = survey.pools.on_filesystem_of(pool).map(|other| &other.settings.name);
                report.shares_filesystem_with = others.filter(|name| **name != pool.settings.name).cloned().collect();
                match space(&survey.pools, pool) {
                    Ok(space) => report.space = Some(space),
                    Err(error) => (report.state, report.reason) = (PoolState::Unavailable, Some(error_chain(&error))),
                }
                report.volumes = pool.count::<VolumeRecord>().unwrap_or_default();
                report.snapshots = pool.count::<SnapshotRecord>().unwrap_or_default();
                report.groups = pool.count::<GroupRecord>().unwrap_or_default();
                report.damaged = pool.damaged().map_or(0, |damaged| damaged.len());
            }
        }
        report
    });
    reports.collect()
}

fn blank(pool: &Pool) -> PoolReport {
    let abilities = pool.abilities();
    PoolReport {
        name: pool.settings.name.clone(),
        kind: pool.settings.kind,
        path: pool.settings.path.to_string_lossy().into_owned(),
        state: PoolState::Unavailable,
        reason: None,
        filesystem: None,
        space: None,
        shares_filesystem_with: Vec::new(),
        volumes: 0,
        snapshots: 0,
        groups: 0,
        damaged: 0,
        shares_blocks: abilities.shares_blocks,
        enforces_sizes: abilities.enforces_sizes,
    }
}

pub(super) fn space(pools: &Pools, pool: &Pool) -> Result<SpaceReport, StoreError> {
    let room = pools.room_as_seen(pool)?;
    Ok(SpaceReport {
        total_bytes: room.total,
        free_bytes: room.free,
        reserve_bytes: room.reserve,
        promised_bytes: room.promised,
        taken_bytes: room.taken,
        available_bytes: room.available,
    })
}
