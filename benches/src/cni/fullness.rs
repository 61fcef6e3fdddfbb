//! ADD with many addresses in use. No masquerade: it is the address that is looked for.

use std::{fs, net::Ipv4Addr, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Bench,
    plugins::Chain,
    subject::{Subject, settle},
};
use crate::{
    network,
    report::{Comparison, Limit, Samples},
};

/// A network with this many addresses in use.
struct Store {
    subject: Subject<Chain>,
    name: String,
    addresses: u32,
    /// One of so many rounds is measured: some take a second.
    every: usize,
    samples: Samples,
}

const FILLS: [u32; 2] = [500, 60_000];

/// The first address that a fill uses; the ones before it are the bridge's and the resident's.
const FIRST: u32 = 10;

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    let mut stores = Vec::new();
    for addresses in [0].into_iter().chain(FILLS) {
        eprintln!("making stores with {addresses} addresses in use");
        stores.push(Store::keelson(bench, addresses)?);
        stores.push(Store::reference(bench, addresses)?);
    }
    eprintln!("ADD with many addresses in use");
    let mut namespaces = Vec::new();
    // The first round warms the caches: it isn't counted.
    for round in 0..=samples {
        for turn in 0..stores.len() {
            let turn = (round + turn) % stores.len();
            let Store { subject, every, samples, .. } = &mut stores[turn];
            if round % *every != 0 {
                continue;
            }
            let pod = subject.pod()?;
            let added = subject.add(&pod)?;
            subject.del(&pod, added.as_ref().ok().map(|attached| &attached.result))?.ok();
            if round > 0 {
                samples.add(added.map(|attached| attached.time));
            }
            namespaces.push(pod.netns);
        }
    }
    settle(namespaces)?;
    let timings: Vec<_> =
        stores.into_iter().map(|store| (store.addresses, store.samples.timing(&store.name))).collect();
    let empty = |name: &str| format!("{name}, 0 in use");
    let mut comparison = Comparison::new(
        "ADD with addresses in use, no masquerade",
        timings.into_iter().map(|(_, timing)| timing).collect(),
    );
    for fill in FILLS {
        let full = |name: &str| format!("{name}, {fill} in use");
        comparison = comparison.ratio(&full("keelson-cni"), &empty("keelson-cni"), Some(Limit::AtMost(1.2))).ratio(
            &full("reference"),
            &empty("reference"),
            None,
        );
    }
    Ok(vec![comparison])
}

impl Store {
    fn keelson(bench: &Bench, addresses: u32) -> Result<Self> {
        let chain = Chain::keelson(bench, false)?;
        let store = Self::new("keelson-cni", chain, addresses)?;
        fill_keelson(&store.subject, addresses)?;
        Ok(store)
    }

    fn reference(bench: &Bench, addresses: u32) -> Result<Self> {
        let chain = Chain::reference(bench, false)?;
        let store =
            Self { every: if addresses > 10_000 { 10 } else { 1 }, ..Self::new("reference", chain, addresses)? };
        fill_reference(&store.subject, addresses)?;
        Ok(store)
    }

    fn new(name: &'static str, chain: Chain, addresses: u32) -> Result<Self> {
        let subject = Subject::new(name, chain, &[])?;
        let name = format!("{name}, {addresses} in use");
        Ok(Self { subject, name, addresses, every: 1, samples: Samples::default() })
    }
}

/// Copies the resident's record, with another container and address in each, as docs/formats-network.md describes it.
fn fill_keelson(subject: &Subject<Chain>, addresses: u32) -> Result<()> {
    let directory = subject.network.data_dir()?.join(network::NAME);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let directory = directory.join(boot_id.trim_end());
    let record = directory.join("attachments").join(format!("{}@eth0", subject.resident().id));
    let text = fs::read_to_string(&record).with_context(|| format!("failed to read {}", record.display()))?;
    let mut record: Value = serde_json::from_str(&text)?;
    for (number, address) in (1..).zip(in_use(network::KEELSON_SUBNET, addresses)) {
        let id = format!("f{number:063x}");
        let name = format!("{id}@eth0");
        record["containerId"] = id.into();
        record["addresses"][0]["address"] = format!("{address}/16").into();
        write(&directory.join("attachments").join(&name), &serde_json::to_vec(&record)?)?;
        symlink(Path::new("../attachments").join(name), directory.join("addresses").join(address.to_string()))?;
    }
    Ok(())
}

/// Writes what host-local keeps: a file for each address, and the one it gave last.
fn fill_reference(subject: &Subject<Chain>, addresses: u32) -> Result<()> {
    let directory = subject.network.data_dir()?.join(network::NAME);
    for (number, address) in (1..).zip(in_use(network::REFERENCE_SUBNET, addresses)) {
        let address = address.to_string();
        write(&directory.join(&address), format!("f{number:063x}\r\neth0").as_bytes())?;
        if number == addresses {
            write(&directory.join("last_reserved_ip.0"), address.as_bytes())?;
        }
    }
    Ok(())
}

fn in_use(subnet: Ipv4Addr, addresses: u32) -> impl Iterator<Item = Ipv4Addr> {
    (FIRST..FIRST + addresses).map(move |offset| Ipv4Addr::from_bits(subnet.to_bits() + offset))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}
