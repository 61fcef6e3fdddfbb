//! Two hundred calls in flight at once, some of them killed at a random moment: afterwards kernel, store and results are
//! the same set.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use common::{Answer, Node, addresses, feed, ip};
use keelson_testkit::{Netns, is_root, skip_unless};
use serde_json::{Value, json};

/// SplitMix64: a seed that is printed makes a run that can be repeated, as far as the scheduler allows.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// How a call ended: its answer, or `None` if it was killed.
type Outcome = Option<Answer>;

/// Starts all calls, lets none go on before all are there, and kills `victims` of them on their way.
fn storm(calls: Vec<Command>, config: &Value, victims: usize, random: &mut Random) -> Vec<Outcome> {
    let text = config.to_string();
    let mut running: Vec<Option<Child>> = Vec::new();
    for mut command in calls {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        running.push(Some(command.spawn().unwrap()));
    }
    // Each waits for its config.
    for child in running.iter_mut().flatten() {
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    }
    // A victim is killed when so many have ended.
    let mut kills: Vec<(usize, usize)> =
        (0..victims).map(|_| (random.below(running.len()), random.below(running.len()))).collect();
    kills.sort_unstable();
    let mut outcomes: Vec<Outcome> = running.iter().map(|_| None).collect();
    let mut ended = 0;
    while ended < running.len() {
        for (index, slot) in running.iter_mut().enumerate() {
            if slot.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                let output = slot.take().unwrap().wait_with_output().unwrap();
                outcomes[index] = output.status.code().map(|_| output.into());
                ended += 1;
            }
        }
        while kills.first().is_some_and(|(after, _)| *after <= ended) {
            let (_, victim) = kills.remove(0);
            if let Some(child) = &mut running[victim] {
                child.kill().unwrap();
            }
        }
    }
    outcomes
}

struct Stage {
    node: Node,
    pods: Vec<Netns>,
    config: Value,
}

impl Stage {
    fn new() -> Self {
        let node = Node::new();
        let mut config = node.config();
        config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/22"}], [{"subnet": "fd77::/64"}]]);
        Self { node, pods: (0..20).map(|_| Netns::new().unwrap()).collect(), config }
    }

    /// Attachment `number`: an interface of its own in one of the Pods.
    fn command(&self, verb: &str, number: usize) -> Command {
        let pod = &self.pods[number % self.pods.len()];
        let mut command = self.node.command(verb, &format!("c{number}"), Some(pod.path()));
        command.env("CNI_IFNAME", format!("n{number}"));
        command
    }

    fn call(&self, verb: &str, number: usize) -> Answer {
        feed(self.command(verb, number), self.config.to_string().as_bytes())
    }

    fn gc(&self, valid: impl Iterator<Item = usize>) {
        let mut config = self.config.clone();
        let valid = valid.map(|number| json!({"containerID": format!("c{number}"), "ifname": format!("n{number}")}));
        config["cni.dev/valid-attachments"] = valid.collect();
        self.node.call("GC", "", None, &config).silent();
    }

    /// Results, records, entries and links must be of the same attachments, with the same addresses.
    #[track_caller]
    fn agrees_with(&self, alive: &BTreeMap<usize, Value>) {
        let records: BTreeSet<String> = self.node.records().into_iter().collect();
        let wanted: BTreeSet<String> = alive.keys().map(|number| format!("c{number}@n{number}")).collect();
        assert_eq!(records, wanted);
        let mut given: Vec<IpAddr> = alive.values().flat_map(addresses).collect();
        let all = given.len();
        given.sort_unstable();
        given.dedup();
        assert_eq!((given.len(), all), (2 * alive.len(), 2 * alive.len()), "an address was given twice");
        // A DEL that was killed after its record's removal leaves an entry that means nothing.
        let entries = self.node.boot_dir().join("addresses");
        let taken = self.node.taken();
        let meant = taken.iter().filter(|address| entries.join(address).exists());
        let taken: BTreeSet<IpAddr> = meant.map(|address| address.parse().unwrap()).collect();
        assert_eq!(taken, given.iter().copied().collect());
        let names = |namespace: &Netns| -> BTreeSet<String> {
            let links: Value = serde_json::from_str(&ip(namespace, &["-j", "link"])).unwrap();
            links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
        };
        let of_host: BTreeSet<String> = alive
            .values()
            .map(|result| result["interfaces"][1]["name"].as_str().unwrap().to_owned())
            .chain(["lo".to_owned(), "kt0".to_owned()])
            .collect();
        assert_eq!(names(&self.node.host), of_host);
        for (index, pod) in self.pods.iter().enumerate() {
            let here = |number: &usize| number % self.pods.len() == index;
            let wanted: BTreeSet<String> =
                alive.keys().copied().filter(here).map(|number| format!("n{number}")).collect();
            let mut found = names(pod);
            found.remove("lo");
            assert_eq!(found, wanted);
            let shown: Value = serde_json::from_str(&ip(pod, &["-j", "addr", "show", "scope", "global"])).unwrap();
            let shown: BTreeSet<IpAddr> = shown
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
                .filter_map(|address| Some(address["local"].as_str()?.parse().unwrap()))
                .collect();
            let wanted = alive.iter().filter(|(number, _)| here(number)).flat_map(|(_, result)| addresses(result));
            assert_eq!(shown, wanted.collect());
        }
    }
}

#[test]
fn after_a_storm_with_kills_kernel_store_and_results_are_the_same_set() {
    skip_unless!(is_root(), "needs root");
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let mut random = Random(u64::try_from(seed % u128::from(u64::MAX)).unwrap());
    println!("seed {}", random.0);
    let stage = Stage::new();
    for number in 0..40 {
        assert_eq!(stage.call("ADD", number).status, 0);
    }

    // 0 to 39: DEL of what is there. 40 to 99: ADD. 100 to 119: ADD twice. 120 to 149: ADD and DEL meet.
    let mut calls: Vec<(&str, usize)> = (0..40).map(|number| ("DEL", number)).collect();
    calls.extend((40..150).map(|number| ("ADD", number)));
    calls.extend((100..120).map(|number| ("ADD", number)));
    calls.extend((120..150).map(|number| ("DEL", number)));
    assert_eq!(calls.len(), 200);
    for index in (1..calls.len()).rev() {
        calls.swap(index, random.below(index + 1));
    }
    let commands = calls.iter().map(|(verb, number)| stage.command(verb, *number)).collect();
    let outcomes = storm(commands, &stage.config, 60, &mut random);
    let killed: BTreeSet<usize> =
        calls.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_none()).map(|((_, number), _)| *number).collect();
    assert!(killed.len() >= 5, "only {} calls were killed: nothing was shown", killed.len());

    let mut alive: BTreeMap<usize, Value> = BTreeMap::new();
    for ((verb, number), outcome) in calls.iter().zip(&outcomes) {
        let Some(answer) = outcome else { continue };
        let is_contested = (120..150).contains(number);
        if *verb == "DEL" {
            answer.silent();
        } else if !is_contested {
            assert_eq!(answer.status, 0, "{verb} {number}: {answer:?}");
            let result = answer.json();
            if !killed.contains(number) {
                // Who asks twice gets the same.
                assert_eq!(addresses(alive.entry(*number).or_insert(result.clone())), addresses(&result), "{number}");
            }
        }
    }
    // What was killed or contested is gone after its DEL, or after GC without one.
    let unsure: Vec<usize> = killed.iter().copied().chain(120..150).collect();
    for number in unsure.iter().filter(|number| *number % 2 == 0) {
        stage.call("DEL", *number).silent();
    }
    stage.gc(alive.keys().copied());
    stage.agrees_with(&alive);

    // And everything goes: each by two DELs at once, some of them killed, and then another.
    let doubled: Vec<usize> = alive.keys().chain(alive.keys()).copied().collect();
    let commands = doubled.iter().map(|number| stage.command("DEL", *number)).collect();
    for outcome in storm(commands, &stage.config, 40, &mut random).iter().flatten() {
        outcome.silent();
    }
    for number in alive.keys() {
        stage.call("DEL", *number).silent();
    }
    stage.agrees_with(&BTreeMap::new());
    // Not even a temporary file.
    assert_eq!(stage.node.records(), Vec::<String>::new());
}
