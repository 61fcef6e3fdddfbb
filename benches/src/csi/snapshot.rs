//! Snapshots and clones of a written volume, by the pieces that its file lies in.

use anyhow::Result;

use super::{
    Bench, GIB, extents,
    random::{self, Verb},
    subject::{Outcome, Source, Subject, Use, need, timed},
};
use crate::report::{Comparison, Figure, Limit, Samples};

/// How many small writes go to random places before each measurement, in all.
const WRITES: [u64; 4] = [0, 100, 1_000, 10_000];

/// What the limits are for.
const LIMITED: [u64; 2] = [0, 10_000];

const CALLS: [&str; 3] = ["CreateSnapshot", "CreateVolume from a snapshot", "CreateVolume from a volume"];

/// A subject with a published volume.
struct Written<'a> {
    subject: &'a Subject,
    id: String,
    path: std::path::PathBuf,
    taken: [Samples; 3],
}

pub(super) async fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    let mut written = Vec::new();
    for subject in [&bench.ours, &bench.theirs] {
        let (id, path) = need(subject.ready("written", Use::Block).await, subject)?;
        random::fill(&random::open(&path)?, GIB.unsigned_abs())?;
        written.push(Written { subject, id, path, taken: Default::default() });
    }
    let mut comparisons = Vec::new();
    let mut before = 0;
    for writes in WRITES {
        eprintln!("{}", bench.heading(&format!("snapshots after {writes} random writes")));
        comparisons.extend(after(bench, &mut written, writes - before, writes, samples.div_ceil(10)).await?);
        before = writes;
    }
    for Written { subject, id, .. } in written {
        need(subject.discard(&id).await, subject)?;
    }
    bench.place.trim()?;
    Ok(comparisons)
}

/// Writes into the volumes, while a snapshot of each exists that must keep what is overwritten, and measures.
async fn after(
    bench: &Bench,
    written: &mut [Written<'_>],
    more: u64,
    writes: u64,
    samples: usize,
) -> Result<Vec<Comparison>> {
    let mut pieces = Vec::new();
    for Written { subject, id, path, .. } in &*written {
        let kept = subject.snapshot(&format!("kept-{writes}"), id).await;
        random::blocks(&random::open(path)?, GIB.unsigned_abs(), Verb::Write, more, 1, writes)?;
        if let Ok(kept) = kept {
            need(subject.delete_snapshot(&kept).await, subject)?;
        }
        bench.place.settle()?;
        pieces.push(extents::count(path)?);
    }
    // They copy it all, always: how ours grows shows without them.
    let taking_part = if LIMITED.contains(&writes) { written.len() } else { 1 };
    for round in 0..samples {
        for turn in 0..taking_part {
            let turn = (round + turn) % taking_part;
            let Written { subject, id, taken, .. } = &mut written[turn];
            let times = once(bench, subject, id, &format!("{writes}-{round}")).await?;
            taken.iter_mut().zip(times).for_each(|(taken, time)| taken.add(time));
        }
    }
    let mut comparisons = Vec::new();
    for (call, what) in CALLS.into_iter().enumerate() {
        let timings = written
            .iter_mut()
            .zip(&pieces)
            .take(taking_part)
            .map(|(written, pieces)| {
                let name = format!("{}, {pieces} extents", written.subject.name);
                std::mem::take(&mut written.taken[call]).timing(&name)
            })
            .collect();
        let what = format!("{what}, 1 GiB written in order, then {writes} random writes of 4 KiB");
        let ours = format!("{}, {} extents", written[0].subject.name, pieces[0]);
        let theirs = format!("{}, {} extents", written[1].subject.name, pieces[1]);
        let mut comparison = Comparison::new(bench.heading(&what), timings);
        if taking_part > 1 {
            comparison = comparison.times_as_fast(&theirs, 20.0);
        }
        // No file has 2^52 extents.
        #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
        let each = comparison.median_ms(&ours).map(|milliseconds| milliseconds * 1000.0 / pieces[0] as f64);
        comparisons.push(comparison.with(Figure::new("ours, for each extent", each, "us", None::<Limit>)));
    }
    Ok(comparisons)
}

/// Makes one of each, and removes them.
async fn once(bench: &Bench, subject: &Subject, volume: &str, name: &str) -> Result<[Outcome<std::time::Duration>; 3]> {
    bench.place.settle()?;
    let (cut, snapshot) = timed(subject.snapshot(&format!("snapshot-{name}"), volume)).await;
    let cut = snapshot.clone().map(|_| cut);
    let sources = [snapshot.as_deref().map(Source::Snapshot), Ok(Source::Volume(volume))];
    let mut clones = Vec::new();
    for (number, source) in sources.into_iter().enumerate() {
        clones.push(match source {
            Ok(source) => clone(bench, subject, &format!("clone-{name}-{number}"), source).await?,
            Err(failure) => Err(failure.clone()),
        });
    }
    if let Ok(snapshot) = &snapshot {
        need(subject.delete_snapshot(snapshot).await, subject)?;
    }
    let [restored, cloned] = <[_; 2]>::try_from(clones).map_err(|_| anyhow::anyhow!("there are two sources"))?;
    Ok([cut, restored, cloned])
}

async fn clone(
    bench: &Bench,
    subject: &Subject,
    name: &str,
    source: Source<'_>,
) -> Result<Outcome<std::time::Duration>> {
    bench.place.settle()?;
    let (time, cloned) = timed(subject.create_as(name, Use::Block, GIB, Some(source))).await;
    if let Ok(id) = &cloned {
        need(subject.delete(id).await, subject)?;
    }
    Ok(cloned.map(|_| time))
}
