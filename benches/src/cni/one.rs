//! ADD and DEL, one at a time.

use anyhow::Result;

use super::{
    Bench,
    netavark::Netavark,
    plugins::Chain,
    subject::{Network, Outcome, Subject, remove_link, settle},
};
use crate::{
    programs,
    report::{Comparison, Samples},
};

/// What is asked of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Plain,
    Masquerade,
    HostPorts,
}

const OURS: &str = "keelson-cni";
const REFERENCE: &str = "reference bridge + host-local";
const REFERENCE_PORTMAP: &str = "reference bridge + host-local + portmap";
const START: &str = "start of a static program (floor)";
const REMOVAL: &str = "ip link del of the same veth (floor)";

/// A subject and what it took so far.
struct Measured {
    subject: Subject<Box<dyn Network>>,
    adds: Samples,
    dels: Samples,
}

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for variant in [Variant::Plain, Variant::Masquerade, Variant::HostPorts] {
        eprintln!("ADD and DEL, {}", variant.words());
        comparisons.extend(compare(bench, samples, variant)?);
    }
    Ok(comparisons)
}

fn compare(bench: &Bench, samples: usize, variant: Variant) -> Result<[Comparison; 2]> {
    let mut measured = subjects(bench, variant)?;
    let (mut starts, mut removals) = (Samples::default(), Samples::default());
    // The Pods' namespaces live until the end: the kernel takes them down in the background, which would be
    // measured with the samples that follow.
    let mut namespaces = Vec::new();
    // The first round warms the caches: it isn't counted.
    for round in 0..=samples {
        let counted = round > 0;
        for turn in 0..=measured.len() {
            // Each goes first in its round.
            let turn = (round + turn) % (measured.len() + 1);
            let Some(Measured { subject, adds, dels }) = measured.get_mut(turn) else {
                let start = programs::start(&bench.nothing)?;
                let (removal, pod) = veth_removal(&mut measured[0].subject)?;
                if counted {
                    starts.add(Ok(start));
                    removals.add(removal);
                }
                namespaces.push(pod);
                continue;
            };
            let pod = subject.pod()?;
            let added = subject.add(&pod)?;
            let deleted = subject.del(&pod, added.as_ref().ok().map(|attached| &attached.result))?;
            if counted {
                // What detaches nothing is no DEL to compare with.
                dels.add(added.as_ref().map_err(Clone::clone).and(deleted));
                adds.add(added.map(|attached| attached.time));
            }
            namespaces.push(pod.netns);
        }
    }
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for Measured { subject, adds: added, dels: deleted } in measured {
        adds.push(added.timing(subject.name));
        dels.push(deleted.timing(subject.name));
    }
    adds.push(starts.timing(START));
    dels.push(removals.timing(REMOVAL));
    settle(namespaces)?;
    let adds = Comparison::new(format!("ADD, {}", variant.words()), adds);
    let adds = match variant {
        Variant::Plain => adds.at_most(REFERENCE, 0.35),
        Variant::Masquerade if bench.netavark.is_ok() => adds.at_most(REFERENCE, 0.10).at_most(Netavark::NAME, 0.15),
        Variant::Masquerade => adds.at_most(REFERENCE, 0.10),
        Variant::HostPorts => adds.at_most(REFERENCE_PORTMAP, 0.10),
    };
    let dels = Comparison::new(format!("DEL, {}", variant.words()), dels).at_most(REMOVAL, 1.15);
    Ok([adds, dels])
}

fn subjects(bench: &Bench, variant: Variant) -> Result<Vec<Measured>> {
    let masquerade = variant != Variant::Plain;
    let mut traces = Vec::new();
    if masquerade {
        traces.push("masquerade".to_owned());
    }
    let (mut keelson, mut reference) = (Chain::keelson(bench, masquerade)?, Chain::reference(bench, masquerade)?);
    let mut reference_name = REFERENCE;
    if variant == Variant::HostPorts {
        // Those of the resident, which is the first Pod.
        traces.extend(["20000".to_owned(), "20001".to_owned()]);
        (keelson, reference) = (keelson.with_host_ports(None), reference.with_host_ports(Some(bench)));
        reference_name = REFERENCE_PORTMAP;
    }
    let mut networks: Vec<(_, Box<dyn Network>)> =
        vec![(OURS, Box::new(keelson)), (reference_name, Box::new(reference))];
    if variant != Variant::HostPorts
        && let Some(netavark) = Netavark::new(bench, masquerade)?
    {
        networks.push((Netavark::NAME, Box::new(netavark)));
    }
    let measured = |(name, network)| -> Result<_> {
        let subject = Subject::new(name, network, &traces)?;
        Ok(Measured { subject, adds: Samples::default(), dels: Samples::default() })
    };
    networks.into_iter().map(measured).collect()
}

/// How long it takes to remove an attachment's link with nothing around it, and the namespace that it led to.
fn veth_removal(
    subject: &mut Subject<Box<dyn Network>>,
) -> Result<(Outcome<std::time::Duration>, keelson_testkit::Netns)> {
    let pod = subject.pod()?;
    let removal = match subject.add(&pod)? {
        Ok(attached) => {
            let link = attached.result["interfaces"][1]["name"].as_str().unwrap_or_default().to_owned();
            let removal = subject.host.run(|| remove_link(&link))?;
            // What is left is the record.
            subject.del(&pod, Some(&attached.result))?.and(removal)
        }
        Err(failure) => Err(failure),
    };
    Ok((removal, pod.netns))
}

impl Variant {
    fn words(self) -> &'static str {
        match self {
            Self::Plain => "no masquerade",
            Self::Masquerade => "masquerade",
            Self::HostPorts => "masquerade and two host ports",
        }
    }
}
