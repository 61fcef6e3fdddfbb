//! STATUS and VERSION, which a runtime asks for again and again.

use anyhow::Result;

use super::{Bench, plugins::Chain, subject::Subject};
use crate::{
    programs,
    report::{Comparison, Samples},
};

const START: &str = "start of an empty static program (floor)";

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    ["STATUS", "VERSION"].into_iter().map(|verb| compare(bench, samples, verb)).collect()
}

fn compare(bench: &Bench, samples: usize, verb: &str) -> Result<Comparison> {
    eprintln!("{verb}");
    // STATUS came with this version.
    let (keelson, reference) = (Chain::keelson(bench, true)?, Chain::reference(bench, true)?);
    let mut subjects = [
        (Subject::new("keelson-cni", keelson.of_version("1.1.0"), &[])?, Samples::default()),
        (Subject::new("reference bridge + host-local", reference.of_version("1.1.0"), &[])?, Samples::default()),
    ];
    let mut starts = Samples::default();
    // The first round warms the caches: it isn't counted.
    for round in 0..=samples {
        for turn in 0..=subjects.len() {
            let turn = (round + turn) % (subjects.len() + 1);
            match subjects.get_mut(turn) {
                Some((subject, samples)) => {
                    let outcome = subject.host.run(|| subject.network.ask(verb))?;
                    if round > 0 {
                        samples.add(outcome);
                    }
                }
                // Started as they are, from a thread in a host's namespace.
                None => {
                    let start = subjects[0].0.host.run(|| programs::start(&bench.nothing))?;
                    if round > 0 {
                        starts.add(Ok(start));
                    }
                }
            }
        }
    }
    let mut timings: Vec<_> = subjects.into_iter().map(|(subject, samples)| samples.timing(subject.name)).collect();
    timings.push(starts.timing(START));
    Ok(Comparison::new(verb, timings).at_most(START, 1.5))
}
