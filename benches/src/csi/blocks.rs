//! What changed between two snapshots.

use std::fs;

use anyhow::{Context, Result};

use super::{
    Bench, GIB,
    random::{self, Verb},
    subject::{Outcome, Subject, Use, need, timed},
};
use crate::report::{Comparison, Figure, Limit, Samples};

/// How many blocks are written between the two; some of them twice.
const WRITES: u64 = 1_000;

pub(super) async fn measure(bench: &Bench, samples: usize) -> Result<Comparison> {
    eprintln!("{}", bench.heading("changed blocks"));
    let subjects = [&bench.ours, &bench.theirs];
    let mut volumes = Vec::new();
    for subject in subjects {
        let (id, path) = need(subject.ready("changing", Use::Block).await, subject)?;
        let file = random::open(&path)?;
        random::fill(&file, GIB.unsigned_abs())?;
        let before = subject.snapshot("before", &id).await;
        random::blocks(&file, GIB.unsigned_abs(), Verb::Write, WRITES, 1, 1)?;
        let after = subject.snapshot("after", &id).await;
        volumes.push((id, before, after));
    }
    bench.place.settle()?;
    let mut taken: [Samples; 2] = Default::default();
    let (mut read, mut sectors) = (None, None);
    for round in 0..samples.div_ceil(4) {
        for turn in 0..subjects.len() {
            let turn = (round + turn) % subjects.len();
            let (subject, (_, before, after)) = (subjects[turn], &volumes[turn]);
            let counters = (bytes_read(subject)?, bench.place.sectors_read()?);
            let outcome = match (before, after) {
                (Ok(before), Ok(after)) => {
                    let (time, bytes) = timed(subject.delta(before, after)).await;
                    bytes.and_then(|bytes| plausible(bytes).map(|()| time))
                }
                (Err(failure), _) | (_, Err(failure)) => Err(failure.clone()),
            };
            if turn == 0 && outcome.is_ok() {
                read = counters.0.zip(bytes_read(subject)?).map(|(before, after)| after - before).max(read);
                sectors = Some(bench.place.sectors_read()? - counters.1).max(sectors);
            }
            taken[turn].add(outcome);
        }
    }
    for (subject, (id, before, after)) in subjects.into_iter().zip(volumes) {
        for snapshot in [before, after].into_iter().flatten() {
            need(subject.delete_snapshot(&snapshot).await, subject)?;
        }
        need(subject.discard(&id).await, subject)?;
    }
    bench.place.trim()?;
    let [ours, theirs] = taken;
    let timings = vec![ours.timing(bench.ours.name), theirs.timing(bench.theirs.name)];
    // A MiB is far below what an f64 holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
    let kibibytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / 1024.0);
    Ok(Comparison::new(
        bench.heading("GetMetadataDelta of 1 GiB with 1,000 random writes of 4 KiB in between"),
        timings,
    )
    .times_as_fast(bench.theirs.name, 50.0)
    // The records of two snapshots and two requests; the data of one extent would be more.
    .with(Figure::new("read calls of ours brought at most", kibibytes(read), "KiB", Some(Limit::AtMost(64.0))))
    .with(Figure::new("the pool's disk meanwhile read at most", kibibytes(sectors.map(|n| n * 512)), "KiB", None)))
}

/// Checks that at least what was written was found, and no more than a coarse granularity explains.
fn plausible(bytes: i64) -> Outcome<()> {
    let few = 900 * 4096;
    if bytes >= few && bytes <= GIB { Ok(()) } else { Err(format!("it found {bytes} bytes changed")) }
}

/// Bytes that read calls of the driver's process brought so far.
fn bytes_read(subject: &Subject) -> Result<Option<u64>> {
    let Some(server) = subject.server() else { return Ok(None) };
    let path = format!("/proc/{}/io", server.pid());
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    // proc_pid_io(5): rchar.
    let value = text.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse().ok());
    Ok(Some(value.with_context(|| format!("{path} has no rchar"))?))
}
