//! Many ADDs at once: a busy node, and all of a node's Pods after its reboot.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use serde_json::Value;

use super::{
    Bench,
    plugins::Chain,
    subject::{Network as _, Outcome, Pod, Subject, settle},
};
use crate::report::{Comparison, Figure, Samples};

const OURS: &str = "keelson-cni";
const REFERENCE: &str = "reference bridge + host-local";

/// How many ADDs at once, and of how many samples of single calls one burst takes the place.
const BURSTS: [(u16, usize); 2] = [(32, 8), (110, 20)];

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    BURSTS.into_iter().map(|(size, share)| compare(bench, size, samples.div_ceil(share))).collect()
}

fn compare(bench: &Bench, size: u16, rounds: usize) -> Result<Comparison> {
    eprintln!("{size} ADDs at once");
    let traces = ["masquerade".to_owned()];
    let mut subjects = [
        (Subject::new(OURS, Chain::keelson(bench, true)?, &traces)?, Samples::default()),
        (Subject::new(REFERENCE, Chain::reference(bench, true)?, &traces)?, Samples::default()),
    ];
    // The first round warms the caches: it isn't counted.
    for round in 0..=rounds {
        for turn in 0..subjects.len() {
            // Each goes first in every other round.
            let (subject, samples) = &mut subjects[(round + turn) % 2];
            let pods: Vec<Pod> = (0..size).map(|_| subject.pod()).collect::<Result<_>>()?;
            let burst = burst(subject, &pods)?;
            if round > 0 {
                samples.add(subject.judge(burst));
            }
            settle(pods.into_iter().map(|pod| pod.netns))?;
        }
    }
    let timings = subjects.into_iter().map(|(subject, samples)| samples.timing(subject.name)).collect();
    let mut comparison = Comparison::new(format!("{size} ADDs at once, masquerade, until the last is done"), timings);
    for name in [OURS, REFERENCE] {
        let per_second = comparison.median_ms(name).map(|median| f64::from(size) * 1000.0 / median);
        comparison = comparison.with(Figure::new(name, per_second, "ADDs a second", None));
    }
    Ok(comparison.times_as_fast(REFERENCE, 8.0))
}

/// Attaches all Pods at once and detaches them; how long it took until the last was attached, if all were.
fn burst(subject: &Subject<Chain>, pods: &[Pod]) -> Result<Outcome<Duration>> {
    // The threads are ready when the time starts; what is counted is what a runtime would wait for.
    let ready = Barrier::new(pods.len() + 1);
    let (results, time) = subject.host.run(|| {
        thread::scope(|scope| {
            let attach = |pod| {
                ready.wait();
                subject.network.add(pod)
            };
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(move || attach(pod))).collect();
            ready.wait();
            let start = Instant::now();
            let results: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            (results, start.elapsed())
        })
    });
    let mut attached = Vec::new();
    let mut outcome = Ok(time);
    for result in results {
        let result = result.map_err(|_| anyhow!("a thread that runs an ADD panicked"))??;
        attached.push(result.map(|done| done.result).map_err(|failure| outcome = Err(failure)).ok());
    }
    detach(subject, pods, &attached)?;
    Ok(outcome)
}

fn detach(subject: &Subject<Chain>, pods: &[Pod], results: &[Option<Value>]) -> Result<()> {
    subject.host.run(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .zip(results)
                .map(|(pod, result)| scope.spawn(|| subject.network.del(pod, result.as_ref())))
                .collect();
            threads.into_iter().try_for_each(|thread| {
                // A DEL's failure shows where DELs are measured.
                thread.join().map_err(|_| anyhow!("a thread that runs a DEL panicked"))?.map(|_| ())
            })
        })
    })?;
    subject.clean()
}
