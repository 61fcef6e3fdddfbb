//! Reads and writes in an image volume beside those in a file of the pool's filesystem, all with direct I/O.

use std::fs::{self, File};

use anyhow::{Context, Result};

use super::{
    Bench,
    random::{self, Verb},
    subject::{Use, need},
};
use crate::report::{Comparison, Limit, Samples};

const NAMES: [&str; 3] = ["keelson, block", "keelson, a file in ext4", "a file in the pool's filesystem"];

/// How many bytes are read and written: less than the volume, for a filesystem in it takes some.
const BYTES: u64 = 768 << 20;

/// One kind of reads or writes: what it is called, what is done, and how much faster than a file's it must be.
#[derive(Clone, Copy)]
enum Load {
    Random(Verb, u64, u64),
    ReadAll,
    WriteAll,
    Sync,
}

const LOADS: [(&str, Load, Option<f64>); 7] = [
    ("1,000 random reads of 4 KiB, one at a time", Load::Random(Verb::Read, 1_000, 1), None),
    ("1,000 random writes of 4 KiB, one at a time", Load::Random(Verb::Write, 1_000, 1), None),
    ("16,000 random reads of 4 KiB, 32 at once", Load::Random(Verb::Read, 16_000, 32), Some(0.9)),
    ("16,000 random writes of 4 KiB, 32 at once", Load::Random(Verb::Write, 16_000, 32), Some(0.9)),
    ("768 reads of 1 MiB in order", Load::ReadAll, None),
    ("768 writes of 1 MiB in order", Load::WriteAll, None),
    ("fsync after a write of 4 KiB", Load::Sync, None),
];

pub(super) async fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    eprintln!("{}", bench.heading("reads and writes"));
    let (block, device) = need(bench.ours.ready("io-block", Use::Block).await, &bench.ours)?;
    let (ext4, directory) = need(bench.ours.ready("io-ext4", Use::Ext4).await, &bench.ours)?;
    let plain = bench.place.directory("io")?.join("file");
    let inside = directory.join("file");
    File::create_new(&plain)?;
    File::create_new(&inside)?;
    let files = [&device, &inside, &plain].map(|path| random::open(path));
    let [device, inside, plain_file] = files;
    let files = [device?, inside?, plain_file?];
    for file in &files {
        random::fill(file, BYTES)?;
    }
    let mut comparisons = Vec::new();
    for (what, load, limit) in LOADS {
        let mut taken: [Samples; 3] = Default::default();
        // The first round warms what there is to warm: it isn't counted.
        for round in 0..=samples.div_ceil(4) {
            for turn in 0..files.len() {
                let turn = (round + turn) % files.len();
                bench.place.settle()?;
                let times = tokio::task::block_in_place(|| run(&files[turn], load, round as u64))
                    .with_context(|| format!("{}: {what}", NAMES[turn]))?;
                if round > 0 {
                    times.into_iter().for_each(|time| taken[turn].add(Ok(time)));
                }
            }
        }
        let timings = taken.into_iter().zip(NAMES).map(|(samples, name)| samples.timing(name)).collect();
        let mut comparison = Comparison::new(bench.heading(what), timings);
        for ours in &NAMES[..2] {
            comparison = comparison.speed(ours, NAMES[2], limit.map(Limit::AtLeast));
        }
        comparisons.push(comparison);
    }
    drop(files);
    for id in [block, ext4] {
        need(bench.ours.discard(&id).await, &bench.ours)?;
    }
    fs::remove_file(plain)?;
    bench.place.trim()?;
    Ok(comparisons)
}

fn run(file: &File, load: Load, seed: u64) -> Result<Vec<std::time::Duration>> {
    Ok(match load {
        Load::Random(verb, count, depth) => vec![random::blocks(file, BYTES, verb, count, depth, seed)?],
        Load::ReadAll => vec![random::read_all(file, BYTES)?],
        Load::WriteAll => vec![random::fill(file, BYTES)?],
        Load::Sync => random::syncs(file, BYTES, 50, seed)?,
    })
}
