//! Where the time of an ADD with masquerade goes: what strace sees, less what strace costs.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, ensure};

use super::{
    Bench,
    plugins::Chain,
    subject::{Network as _, Subject, settle},
    trace::{self, Call},
};
use crate::{
    programs,
    report::{Breakdown, Part},
};

/// A part's place in the order in which they are printed, and what it is called.
type Key = (usize, String);

const ALL: &str = "all of it, untraced";
const START: &str = "start of a static program, untraced";

/// The netlink messages come after all else, in the order in which they are sent.
const MESSAGES: usize = 100;

pub(super) fn measure(bench: &Bench, samples: usize) -> Result<Breakdown> {
    eprintln!("where the time of an ADD goes");
    let mut subject = Subject::new("keelson-cni", Chain::keelson(bench, true)?, &["masquerade".to_owned()])?;
    let directory = bench.state("trace")?;
    let plain = subject.network.clone();
    let (mut totals, mut starts, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
    let mut parts: BTreeMap<Key, Vec<(usize, f64)>> = BTreeMap::new();
    // A trace costs ten times what it looks at.
    for round in 0..=samples.div_ceil(4) {
        for traced in [false, true] {
            let file = directory.join(round.to_string());
            subject.network = if traced { plain.traced(&file) } else { plain.clone() };
            let pod = subject.pod()?;
            let added = subject.host.run(|| subject.network.add(&pod))?;
            subject.network = plain.clone();
            let attached = added.map_err(|failure| anyhow::anyhow!("ADD failed: {failure}"))?;
            let deleted = subject.del(&pod, Some(&attached.result))?;
            ensure!(deleted.is_ok(), "DEL failed: {deleted:?}");
            namespaces.push(pod.netns);
            if round == 0 {
                continue;
            }
            if traced {
                for (key, times, seconds) in attribute(&trace::read(&file)?, &plain.data_dir()?) {
                    parts.entry(key).or_default().push((times, seconds));
                }
            } else {
                totals.push(attached.time.as_secs_f64());
                starts.push(programs::start(&bench.nothing)?.as_secs_f64());
            }
        }
    }
    settle(namespaces)?;
    let part = |what: &str, seconds: f64| Part { what: what.to_owned(), times: 1, microseconds: seconds * 1e6 };
    let mut found = vec![part(ALL, median(totals.clone())), part(START, median(starts.clone()))];
    let traced: f64 = parts.values().map(|seen| median(seen.iter().map(|(_, seconds)| *seconds).collect())).sum();
    let rest = (median(totals.clone()) - median(starts.clone()) - traced).max(0.0);
    found.extend(parts.into_iter().map(|((_, what), seen)| {
        let (times, seconds): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
        Part { what, times: times.into_iter().max().unwrap_or(0), microseconds: median(seconds) * 1e6 }
    }));
    found.push(part("what is left: computing", rest));
    Ok(Breakdown { what: "Where the time of an ADD with masquerade goes".to_owned(), parts: found })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The parts of one trace: how many system calls are in each, and the seconds that they took.
///
/// Tracing lengthens each call, and each gap between two, by about the same. Most calls take next to nothing, so a cheap
/// one shows by how much.
fn attribute(calls: &[Call], data_dir: &Path) -> Vec<(Key, usize, f64)> {
    let cost = cheap(calls.iter().map(|call| call.took).collect());
    let gap_cost = cheap(calls.windows(2).map(|pair| pair[1].start - pair[0].end()).collect());
    let mut parts: BTreeMap<Key, (usize, f64)> = BTreeMap::new();
    let mut message = (MESSAGES, String::new());
    for (index, call) in calls.iter().enumerate() {
        let key = match call.name.as_str() {
            // A fork's costs are in the start of a program already.
            "execve" => continue,
            "sendto" => {
                let number = message.0 + 1 - MESSAGES;
                message = (message.0 + 1, format!("netlink {number}: {}", message_types(&call.text)));
                message.clone()
            }
            // An answer belongs to the message before it.
            "recvfrom" => message.clone(),
            _ => classify(call, data_dir),
        };
        let part = parts.entry(key).or_default();
        *part = (part.0 + 1, part.1 + (call.took - cost).max(0.0));
        // The config is whole when there is no more to read.
        if call.name == "read"
            && call.text.starts_with("read(0<")
            && call.text.contains(") = 0 ")
            && let Some(next) = calls.get(index + 1)
        {
            parts.insert((2, "parse".to_owned()), (1, (next.start - call.end() - gap_cost).max(0.0)));
        }
    }
    parts.into_iter().map(|(key, (times, seconds))| (key, times, seconds)).collect()
}

/// The lower quartile.
fn cheap(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 4).copied().unwrap_or_default()
}

/// What a call is for that sends and receives no message.
fn classify(call: &Call, data_dir: &Path) -> Key {
    let text = &call.text;
    let (place, what) = match call.name.as_str() {
        "socket" | "bind" | "getsockname" | "connect" | "setsockopt" => (4, "netlink sockets: open"),
        "setns" => (3, "the container's namespace: open, enter, leave"),
        "flock" => (5, "lock"),
        "fcntl" if text.contains("SETLK") => (5, "lock"),
        _ if text.contains(&*data_dir.to_string_lossy()) || text.contains("boot_id") => (6, "store"),
        _ if text.contains("net:[") || text.contains("ns/net") || text.contains("keelson-netns") => {
            (3, "the container's namespace: open, enter, leave")
        }
        _ if text.contains("/proc/sys/net") => (7, "switches of /proc/sys: look"),
        "read" | "write" if text.contains("pipe:[") => (1, "stdin and stdout"),
        _ => (0, "memory, signals, exit"),
    };
    (place, what.to_owned())
}

/// The types of the messages in a datagram, such as `RTM_NEWADDR, 2 RTM_NEWROUTE`.
fn message_types(text: &str) -> String {
    let mut types: Vec<(usize, &str)> = Vec::new();
    for part in text.split("nlmsg_type=").skip(1) {
        let name = part.split([',', '}', ' ']).next().unwrap_or_default();
        let name = name.rsplit_once('|').map_or(name, |(_, name)| name);
        // strace looks a socket's family up in its own namespace; those opened in the container's it doesn't know.
        let name = INSIDE.iter().find(|(number, _)| *number == name).map_or(name, |(_, name)| name);
        match types.last_mut() {
            Some((times, last)) if *last == name => *times += 1,
            _ => types.push((1, name)),
        }
    }
    let word = |(times, name): (usize, &str)| if times > 1 { format!("{times} {name}") } else { name.to_owned() };
    types.into_iter().map(word).collect::<Vec<_>>().join(", ")
}

/// Message types (linux/rtnetlink.h) as they are shown of a socket in the container.
const INSIDE: [(&str, &str); 6] = [
    ("0x10", "RTM_NEWLINK inside"),
    ("0x12", "RTM_GETLINK inside"),
    ("0x13", "RTM_SETLINK inside"),
    ("0x14", "RTM_NEWADDR inside"),
    ("0x16", "RTM_GETADDR inside"),
    ("0x18", "RTM_NEWROUTE inside"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_named_by_their_types() {
        let message = |number: &str| format!("{{nlmsg_len=40, nlmsg_type={number}, nlmsg_flags=NLM_F_REQUEST}}");
        let datagram = ["RTM_NEWADDR", "RTM_NEWADDR", "NFNL_SUBSYS_NFTABLES<<8|NFT_MSG_GETGEN", "0x18 /* NLMSG_??? */"];
        let text = format!("sendto(3, [{}], 160)", datagram.map(message).join(", "));
        assert_eq!(message_types(&text), "2 RTM_NEWADDR, NFT_MSG_GETGEN, RTM_NEWROUTE inside");
    }

    #[test]
    fn an_answer_counts_for_the_message_before_it() {
        let call = |name: &str, start: f64, text: &str| Call {
            name: name.to_owned(),
            text: format!("{name}({text}"),
            start,
            took: 0.5,
        };
        let calls = [
            call("brk", 1.0, "NULL) = 0x1"),
            call("sendto", 2.0, "3, {nlmsg_type=RTM_GETLINK, x}) = 40"),
            Call { took: 0.7, ..call("recvfrom", 3.0, "3, \"\") = 40") },
            call("brk", 4.0, "0x2) = 0x2"),
        ];
        let parts = attribute(&calls, Path::new("/state"));
        let found: Vec<_> = parts.iter().map(|((_, what), times, _)| (what.as_str(), *times)).collect();
        assert_eq!(found, [("memory, signals, exit", 2), ("netlink 1: RTM_GETLINK", 2)]);
        assert!((parts[1].2 - 0.2).abs() < 1e-9, "{parts:?}");
    }
}
