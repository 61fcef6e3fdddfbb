//! Where the time of an ADD with masquerade goes, by the log that the executable itself keeps of its calls.

use std::fs;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::{
    Bench,
    plugins::Chain,
    subject::{Pod, Subject, settle},
};
use crate::{
    network, programs,
    report::{Breakdown, Part},
};

/// What one ADD took in all, in microseconds, and in each of its phases.
struct Sample {
    outside: f64,
    inside: f64,
    phases: Vec<(String, f64)>,
}

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Breakdown> {
    eprintln!("where the time of an ADD goes");
    let mut subject = Subject::new("keelson-cni", Chain::keelson(bench, true)?, &["masquerade".to_owned()])?;
    let (mut starts, mut taken, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
    // The first round warms the caches: it isn't counted.
    for round in 0..=samples {
        let start = programs::start(&bench.nothing)?;
        let pod = subject.pod()?;
        let attached = subject.add(&pod)?.map_err(|failure| anyhow!("ADD failed: {failure}"))?;
        let sample = read_log(&subject.network, &pod, attached.time.as_secs_f64() * 1e6)?;
        let deleted = subject.del(&pod, Some(&attached.result))?;
        ensure!(deleted.is_ok(), "DEL failed: {deleted:?}");
        namespaces.push(pod.netns);
        if round > 0 {
            starts.push(start.as_secs_f64() * 1e6);
            taken.push(sample);
        }
    }
    settle(namespaces)?;
    Ok(Breakdown { what: "Where the time of an ADD with masquerade goes".to_owned(), parts: parts(starts, &taken) })
}

/// What the executable logged of the Pod's ADD.
fn read_log(network: &Chain, pod: &Pod, outside: f64) -> Result<Sample> {
    let path = network.data_dir()?.join(network::NAME).join("calls.log");
    let log = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let calls = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let call = calls
        .into_iter()
        .find(|call| call["verb"] == "ADD" && call["containerId"] == pod.id.as_str())
        .with_context(|| format!("{} tells of no ADD of {}", path.display(), pod.id))?;
    let microseconds = |value: &Value| value["durationUs"].as_f64().context("a call has a duration");
    let phases = call["phases"].as_array().context("a call has phases")?;
    let phases = phases.iter().map(|phase| {
        let name = phase["name"].as_str().context("a phase has a name")?;
        Ok((name.to_owned(), microseconds(phase)?))
    });
    Ok(Sample { outside, inside: microseconds(&call)?, phases: phases.collect::<Result<_>>()? })
}

/// Medians; each phase has the name that it had in the last sample, for some tell of one Pod.
fn parts(starts: Vec<f64>, taken: &[Sample]) -> Vec<Part> {
    let of = |value: &dyn Fn(&Sample) -> f64| median(taken.iter().map(value).collect());
    let start = median(starts);
    let inside = of(&|sample| sample.inside);
    let mut parts = vec![
        Part { what: "all of it, from outside".to_owned(), microseconds: of(&|sample| sample.outside) },
        Part { what: "start of an empty static program".to_owned(), microseconds: start },
        Part { what: "start and end beyond that".to_owned(), microseconds: of(&|it| it.outside - it.inside) - start },
        Part { what: "in the process".to_owned(), microseconds: inside },
    ];
    let Some(last) = taken.last() else { return parts };
    for (index, (name, _)) in last.phases.iter().enumerate() {
        let microseconds = of(&|sample| sample.phases.get(index).map_or(0.0, |(_, microseconds)| *microseconds));
        parts.push(Part { what: format!("- {name}"), microseconds });
    }
    let computing =
        of(&|sample| sample.inside - sample.phases.iter().map(|(_, microseconds)| microseconds).sum::<f64>());
    parts.push(Part { what: "- all else".to_owned(), microseconds: computing });
    parts
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
