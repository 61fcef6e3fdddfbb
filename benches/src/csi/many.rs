//! 10,000 volumes in a pool, beside a pool with none.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::JoinSet;

use super::{
    place::{Filesystem, Place},
    server::Server,
    subject::{Served, Subject, Use, need, timed},
};
use crate::report::{Comparison, Limit, Samples};

const VOLUMES: usize = 10_000;

/// How many are made at once.
const AT_ONCE: usize = 16;

/// The smallest there are.
const BYTES: i64 = 4096;

const FULL: &str = "keelson, 10,000 volumes";
const EMPTY: &str = "keelson, none";
const SCAN: &str = "list and stat of the same directories (floor)";

pub(super) async fn measure(keelson: &Path, samples: usize) -> Result<Vec<Comparison>> {
    let place = Place::new(Filesystem::Xfs)?;
    let roots = [place.directory("full")?, place.directory("empty")?];
    let full = start(FULL, keelson, &roots[0]).await?;
    eprintln!("making {VOLUMES} volumes");
    fill(&full).await?;
    let empty = start(EMPTY, keelson, &roots[1]).await?;
    let calls = calls(&place, [&full, &empty], samples).await?;
    drop((full, empty));
    let mut comparisons = vec![starts(&place, keelson, &roots, samples.div_ceil(4)).await?];
    comparisons.extend(calls);
    Ok(comparisons)
}

async fn start(name: &'static str, keelson: &Path, root: &Path) -> Result<Subject> {
    let start = |root: PathBuf| async move { Ok(Served::Server(Arc::new(Server::keelson(keelson, &root).await?))) };
    Subject::new(name, root.to_owned(), start).await
}

async fn fill(subject: &Subject) -> Result<()> {
    let mut calls = JoinSet::new();
    for number in 0..VOLUMES {
        if calls.len() == AT_ONCE
            && let Some(made) = calls.join_next().await
        {
            need(made?, subject)?;
        }
        let subject = subject.clone();
        calls.spawn(async move { subject.create_as(&format!("many-{number}"), Use::Block, BYTES, None).await });
    }
    while let Some(made) = calls.join_next().await {
        need(made?, subject)?;
    }
    Ok(())
}

/// How long a driver takes until it answers, with everything that it has to look at in the page cache.
async fn starts(place: &Place, keelson: &Path, roots: &[PathBuf; 2], samples: usize) -> Result<Comparison> {
    eprintln!("start");
    let mut taken: [Samples; 3] = Default::default();
    for round in 0..=samples {
        for turn in 0..taken.len() {
            let turn = (round + turn) % taken.len();
            place.settle()?;
            let time = match roots.get(turn) {
                Some(root) => {
                    let start = Instant::now();
                    let _server = Server::keelson(keelson, root).await?;
                    start.elapsed()
                }
                None => scan(&roots[0])?,
            };
            if round > 0 {
                taken[turn].add(Ok(time));
            }
        }
    }
    let timings = taken.into_iter().zip([FULL, EMPTY, SCAN]).map(|(samples, name)| samples.timing(name)).collect();
    Ok(Comparison::new("Start of the process until it answers, xfs", timings).at_most(SCAN, 10.0))
}

/// Lists the pool's directories and looks at everything in them.
fn scan(root: &Path) -> Result<Duration> {
    let start = Instant::now();
    let mut directories = vec![root.join("pool")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                directories.push(path);
            }
        }
    }
    Ok(start.elapsed())
}

async fn calls(place: &Place, subjects: [&Subject; 2], samples: usize) -> Result<[Comparison; 2]> {
    eprintln!("calls");
    let mut taken: [[Samples; 2]; 2] = Default::default();
    for round in 0..samples + 2 {
        for turn in 0..subjects.len() {
            let turn = (round + turn) % subjects.len();
            let subject = subjects[turn];
            place.settle()?;
            let (page, listed) = timed(subject.list(100)).await;
            let (create, created) = timed(subject.create_as(&format!("one-{round}"), Use::Block, BYTES, None)).await;
            if let Ok(id) = &created {
                need(subject.delete(id).await, subject)?;
            }
            if round > 1 {
                taken[0][turn].add(listed.map(|_| page));
                taken[1][turn].add(created.map(|_| create));
            }
        }
    }
    let compare = |what: &str, [full, empty]: [Samples; 2]| {
        let comparison = Comparison::new(format!("{what}, xfs"), vec![full.timing(FULL), empty.timing(EMPTY)]);
        comparison.ratio(FULL, EMPTY, Some(Limit::AtMost(1.5)))
    };
    let [pages, creates] = taken;
    Ok([compare("ListVolumes, a page of 100", pages), compare("CreateVolume of 4 KiB", creates)])
}
