//! Bandwidth limits: token buckets (tbf) on the host's end of the veth pair for what the container receives, and on a
//! link of their own (ifb), which takes what the host's end receives, for what it sends.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use nix::errno::Errno;

use super::{
    KernelError, RouteSocket, Step,
    attribute::{Attributes, attribute, native},
    link::{self, Link, State},
    message::RouteNetlinkMessage,
    veth,
};
use crate::config::{
    bandwidth::{Bandwidth, Limit},
    mac::Mac,
};

/// How long a packet waits in a bucket's queue at most, as the reference plugin has it.
const LATENCY_MS: u64 = 25;

/// Nanoseconds of one tick of the packet scheduler (net/pkt_sched.h, `PSCHED_SHIFT`).
const TICK_NS: u128 = 64;

const SECOND_NS: u128 = 1_000_000_000;

/// The deepest bucket in ticks: the kernel keeps 32 bits of nanoseconds.
const DEEPEST: u128 = (u32::MAX / 64) as u128;

/// Handles of linux/pkt_sched.h: the root of a link's queue, the place of the ingress qdisc, and the two qdiscs' own.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const BUCKET: u32 = 0x0001_0000;
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// Attributes of linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const U32_SELECTOR: u16 = 5;
const U32_ACTIONS: u16 = 7;
const FIRST_ACTION: u16 = 1;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;

/// The parameters of a token bucket as the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// Bytes that may wait.
    limit: u32,
    /// The bucket's depth: ticks that it takes to fill at that rate.
    buffer: u32,
}

impl From<Limit> for Bucket {
    /// The reference plugin's formulas. The kernel keeps a depth of at most 2^32 nanoseconds, so runtimes that know only
    /// a rate and ask for the largest burst get 4.3 seconds' worth of the rate; the queue is sized by what it keeps.
    fn from(limit: Limit) -> Self {
        // The config has no rate below one byte a second.
        let rate = (limit.rate / 8).max(1);
        let burst = limit.burst / 8;
        // Rounded up: the kernel rounds the bytes down again.
        let ticks = (u128::from(burst) * SECOND_NS).div_ceil(u128::from(rate) * TICK_NS).clamp(1, DEEPEST);
        let kept = u128::from(burst).min(u128::from(rate) * ticks * TICK_NS / SECOND_NS);
        let waiting = rate / 1000 * LATENCY_MS + rate % 1000 * LATENCY_MS / 1000;
        Self {
            rate,
            limit: u32::try_from(u128::from(waiting) + kept).unwrap_or(u32::MAX),
            buffer: u32::try_from(ticks).unwrap_or(u32::MAX),
        }
    }
}

impl Bucket {
    /// `struct tc_tbf_qopt` without a peak rate, and the rate alone where it doesn't fit there.
    fn options(self) -> Attributes {
        /// `TC_LINKLAYER_ETHERNET`: the kernel reckons transmission times itself, from the rate.
        const ETHERNET: u8 = 1;
        let short = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut parameters = [0; 36];
        parameters[1] = ETHERNET;
        parameters[8..12].copy_from_slice(&short.to_ne_bytes());
        parameters[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        parameters[28..32].copy_from_slice(&self.buffer.to_ne_bytes());
        let options = Attributes::new().bytes(TBF_PARMS, &parameters);
        if u64::from(short) == self.rate { options } else { options.bytes(TBF_RATE64, &self.rate.to_ne_bytes()) }
    }

    /// Reads what [`options`](Self::options) writes.
    fn parse(options: &[u8]) -> Option<Self> {
        let parameters = attribute(options, TBF_PARMS)?;
        let field = |at: usize| parameters.get(at..at + 4).and_then(native);
        let long = attribute(options, TBF_RATE64).and_then(|rate| rate.first_chunk());
        Some(Self {
            rate: match long {
                Some(rate) => u64::from_ne_bytes(*rate),
                None => field(8)?.into(),
            },
            limit: field(24)?,
            buffer: field(28)?,
        })
    }
}

/// The link that takes what the container sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShapingLink<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    /// Tells whose it is when its record is lost.
    pub(crate) alias: &'a str,
}

/// Shapes what passes the host's end of the pair. `shaping_link` is made where the container's sending is limited; it
/// outlives the pair, and is removed by its name.
pub(crate) fn create(
    socket: &mut RouteSocket,
    host_end: &Link,
    bandwidth: &Bandwidth,
    shaping_link: Option<ShapingLink<'_>>,
) -> Result<(), KernelError> {
    let mut steps = Vec::new();
    if let Some(limit) = bandwidth.ingress {
        steps.push(bucket(host_end, limit));
    }
    if let (Some(limit), Some(ShapingLink { name, mac, alias })) = (bandwidth.egress, shaping_link) {
        let target = create_link(socket, name, mac, host_end.mtu)?;
        // The creating message doesn't take it.
        let alias = Attributes::new().text(libc::IFLA_IFALIAS, &veth::alias_of(alias));
        steps.push(Step {
            doing: format!("set the alias of {name}"),
            message: link::message(libc::RTM_SETLINK, target.index, State::Kept, &alias),
            flags: 0,
        });
        // The bucket first: nothing passes by it.
        steps.push(bucket(&target, limit));
        steps.push(Step {
            doing: format!("add the ingress qdisc of {}", host_end.name),
            message: qdisc(host_end.index, INGRESS, INGRESS_HANDLE, "ingress", &Attributes::new()),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        });
        steps.push(Step {
            doing: format!("redirect what {} receives to {name}", host_end.name),
            message: redirect(host_end.index, target.index),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        });
    }
    socket.batch(&steps)
}

/// Makes the link that takes what the container sends; one of the name is what an ADD left whose record was lost.
fn create_link(socket: &mut RouteSocket, name: &str, mac: Mac, mtu: u32) -> Result<Link, KernelError> {
    link::delete(socket, name)?;
    let attributes = Attributes::new()
        .text(libc::IFLA_IFNAME, name)
        .bytes(libc::IFLA_ADDRESS, &mac.0)
        .native(libc::IFLA_MTU, mtu)
        .nest(libc::IFLA_LINKINFO, &Attributes::new().text(libc::IFLA_INFO_KIND, "ifb"));
    let create = link::message(libc::RTM_NEWLINK, 0, State::Up, &attributes);
    socket.request(format!("create the shaping link {name}"), create, NLM_F_CREATE | NLM_F_EXCL)?;
    link::find(socket, name)?.ok_or_else(|| KernelError::new(format!("find the link {name}"), Errno::ENODEV))
}

fn bucket(link: &Link, limit: Limit) -> Step<RouteNetlinkMessage> {
    Step {
        doing: format!("limit {} to {} bits a second", link.name, limit.rate),
        message: qdisc(link.index, ROOT, BUCKET, "tbf", &Bucket::from(limit).options()),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// The length of `tcmsg` (linux/rtnetlink.h).
const FIXED: usize = 20;

/// `tcmsg`: family, link, handle, parent, information.
fn fixed(link: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    for (field, value) in fixed[4..].chunks_exact_mut(4).zip([link, handle, parent, info]) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}

fn qdisc(link: u32, parent: u32, handle: u32, kind: &str, options: &Attributes) -> RouteNetlinkMessage {
    let attributes = Attributes::new().text(KIND, kind).nest(OPTIONS, options);
    RouteNetlinkMessage::new(libc::RTM_NEWQDISC, &fixed(link, handle, parent, 0), &attributes)
}

/// The filter that sends whatever `from` receives out of `to`: a u32 that matches anything, for `matchall` is no part
/// of every kernel that u32 is a part of.
fn redirect(from: u32, to: u32) -> RouteNetlinkMessage {
    /// `TC_U32_TERMINAL`, one key: four bytes of mask 0 at offset 0 (`struct tc_u32_sel`, `struct tc_u32_key`).
    const ANYTHING: [u8; 32] = {
        let mut selector = [0; 32];
        selector[0] = 1;
        selector[2] = 1;
        selector
    };
    /// `TC_ACT_STOLEN`: it goes nowhere else.
    const STOLEN: u32 = 4;
    /// `TCA_EGRESS_REDIR`.
    const REDIRECT: u32 = 1;
    // Priority 1, every protocol (`ETH_P_ALL`, in network byte order).
    let info = 1 << 16 | u32::from(3_u16.to_be());
    // struct tc_mirred.
    let mut parameters = [0; 28];
    parameters[8..12].copy_from_slice(&STOLEN.to_ne_bytes());
    parameters[20..24].copy_from_slice(&REDIRECT.to_ne_bytes());
    parameters[24..].copy_from_slice(&to.to_ne_bytes());
    let action = Attributes::new()
        .text(ACTION_KIND, "mirred")
        .nest(ACTION_OPTIONS, &Attributes::new().bytes(MIRRED_PARMS, &parameters));
    let options = Attributes::new()
        .bytes(U32_SELECTOR, &ANYTHING)
        .nest(U32_ACTIONS, &Attributes::new().nest(FIRST_ACTION, &action));
    let attributes = Attributes::new().text(KIND, "u32").nest(OPTIONS, &options);
    RouteNetlinkMessage::new(libc::RTM_NEWTFILTER, &fixed(from, 0, INGRESS_HANDLE, info), &attributes)
}

/// What of the shaping isn't there, or is otherwise.
pub(crate) fn differences(
    socket: &mut RouteSocket,
    host_end: &str,
    bandwidth: &Bandwidth,
    shaping_link: Option<&str>,
) -> Result<Vec<String>, KernelError> {
    let mut differences = Vec::new();
    let Some(host_end) = link::find(socket, host_end)? else { return Ok(differences) };
    if let Some(limit) = bandwidth.ingress {
        differences.extend(compare(socket, &host_end, limit)?);
    }
    if let (Some(limit), Some(name)) = (bandwidth.egress, shaping_link) {
        match link::find(socket, name)? {
            None => differences.push(format!("the host has no link {name}")),
            Some(target) => {
                if !target.up {
                    differences.push(format!("{name} is down"));
                }
                differences.extend(compare(socket, &target, limit)?);
                if !is_redirected(socket, &host_end, &target)? {
                    differences.push(format!("what {} receives does not go through {name}", host_end.name));
                }
            }
        }
    }
    Ok(differences)
}

fn compare(socket: &mut RouteSocket, link: &Link, limit: Limit) -> Result<Option<String>, KernelError> {
    let doing = format!("look up the qdisc of {}", link.name);
    let get = RouteNetlinkMessage::new(libc::RTM_GETQDISC, &fixed(link.index, 0, ROOT, 0), &Attributes::new());
    // Before Linux 6.10 only an echo brings the answer to who asked.
    let answers = match socket.request(doing, get, NLM_F_ECHO) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => Vec::new(),
        answers => answers?,
    };
    let found = answers.iter().find_map(|answer| {
        let (_, told) = answer.parts::<FIXED>(libc::RTM_NEWQDISC)?;
        let options = attribute(told, OPTIONS).filter(|_| attribute(told, KIND) == Some(b"tbf\0"))?;
        Bucket::parse(options)
    });
    Ok((found != Some(Bucket::from(limit)))
        .then(|| format!("{} is not limited to {} bits a second", link.name, limit.rate)))
}

/// Whether what `from` receives is sent out of `to`.
pub(crate) fn is_redirected(socket: &mut RouteSocket, from: &Link, to: &Link) -> Result<bool, KernelError> {
    let fixed = fixed(from.index, 0, INGRESS_HANDLE, 0);
    let list = RouteNetlinkMessage::new(libc::RTM_GETTFILTER, &fixed, &Attributes::new());
    let answers = socket.dump("list the filters of a link", &list)?;
    Ok(answers.iter().any(|answer| redirect_target(answer) == Some(to.index)))
}

/// The link to which an answer's filter sends what it matches.
fn redirect_target(answer: &RouteNetlinkMessage) -> Option<u32> {
    let (_, told) = answer.parts::<FIXED>(libc::RTM_NEWTFILTER)?;
    let path = [OPTIONS, U32_ACTIONS, FIRST_ACTION, ACTION_OPTIONS, MIRRED_PARMS];
    let parameters = path.into_iter().try_fold(told, attribute)?;
    parameters.get(24..28).and_then(native)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket_of(rate: u64, burst: u64) -> Bucket {
        Bucket::from(Limit { rate, burst })
    }

    #[test]
    fn parameters_are_those_of_the_reference() {
        // 8 Mbit/s, 800 kbit: 100,000 bytes fill in 100 ms; 25 ms of the rate may wait on top.
        assert_eq!(bucket_of(8_000_000, 800_000), Bucket { rate: 1_000_000, limit: 125_000, buffer: 1_562_500 });
        assert_eq!(bucket_of(8, 8), Bucket { rate: 1, limit: 1, buffer: 15_625_000 });
    }

    #[test]
    fn the_largest_burst_is_what_the_kernel_keeps_of_it() {
        let found = bucket_of(10_000_000, u64::from(u32::MAX) / 2);
        assert_eq!(found.buffer, u32::MAX / 64);
        // 4.29 seconds of 1.25 MB, and 25 ms.
        assert_eq!(found.limit, 5_368_709 + 31_250);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_compared(rate in 8..u64::MAX, burst in 8..8 * u64::from(u32::MAX)) {
            let bucket = bucket_of(rate, burst);
            prop_assert_eq!(Bucket::parse(bucket.options().as_bytes()), Some(bucket));
        }
    }
}
