//! Everything from CreateVolume to DeleteVolume.

use anyhow::Result;

use super::{
    Bench,
    subject::{Use, timed},
};
use crate::report::{Comparison, Samples};

pub(super) async fn measure(bench: &Bench, samples: usize) -> Result<Comparison> {
    eprintln!("{}", bench.heading("a volume's life"));
    let subjects = [(&bench.ours, Use::Block), (&bench.theirs, Use::Block), (&bench.ours, Use::Ext4)];
    let mut taken: [Samples; 3] = Default::default();
    // The first rounds warm the caches: they aren't counted.
    for round in 0..samples + 2 {
        for turn in 0..subjects.len() {
            let turn = (round + turn) % subjects.len();
            let (subject, used) = subjects[turn];
            bench.place.settle()?;
            let (time, outcome) = timed(subject.cycle(&format!("cycle-{round}-{turn}"), used)).await;
            if round > 1 {
                taken[turn].add(outcome.map(|()| time));
            }
        }
    }
    let [ours, theirs, ext4] = taken;
    let (block, other) = (format!("{}, block", bench.ours.name), format!("{}, block", bench.theirs.name));
    let timings = vec![ours.timing(&block), theirs.timing(&other), ext4.timing(&format!("{}, ext4", bench.ours.name))];
    let what = bench.heading("create, stage, publish, unpublish, unstage, delete of 1 GiB");
    Ok(Comparison::new(what, timings).times_as_fast(&other, 5.0))
}
