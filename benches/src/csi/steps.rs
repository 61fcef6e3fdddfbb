//! Where the time of a call goes: the system calls of the driver and its helpers that may wait for something.
//!
//! strace stops a process at these calls only, which makes the calls look some tens of microseconds longer.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use super::{
    place::{Filesystem, Place},
    server::Server,
    subject::{Served, Subject, Use, need, timed},
};
use crate::report::{Breakdown, Part};

/// What may take time: what makes, changes or syncs files, mounts, devices and processes.
const TRACED: &str = "mkdir,mkdirat,openat,openat2,ftruncate,fallocate,ioctl,fsync,fdatasync,syncfs,sync_file_range,\
                      rename,renameat,renameat2,unlink,unlinkat,rmdir,mount,umount2,open_tree,move_mount,fsmount,\
                      fsopen,fsconfig,write,pwrite64,pwritev,copy_file_range,execve,clone,clone3,vfork,mknodat,flock";

/// Calls that together took less in the median aren't listed, in microseconds.
const LEAST: f64 = 20.0;

const CALLS: [&str; 3] = ["CreateVolume of 1 GiB, ext4", "NodeStageVolume, ext4", "NodePublishVolume, ext4"];

/// One call: what it took in all and in each kind of step, in microseconds.
struct Sample {
    total: f64,
    steps: Vec<(String, f64)>,
}

pub(super) async fn measure(filesystem: Filesystem, keelson: &Path, samples: usize) -> Result<Vec<Breakdown>> {
    eprintln!("where the time goes, {}", filesystem.name());
    let place = Place::new(filesystem)?;
    let root = place.directory("traced")?;
    let log = root.join("strace");
    let start = |root: PathBuf| {
        let log = log.clone();
        async move { Ok(Served::Server(Arc::new(Server::keelson_below(strace(&log), keelson, &root).await?))) }
    };
    let subject = Subject::new("keelson below strace", root.clone(), start).await?;
    let mut windows = Vec::new();
    for round in 0..samples.div_ceil(2) + 2 {
        place.settle()?;
        let (created, id) = within(subject.create(&format!("steps-{round}"), Use::Ext4)).await?;
        let id = need(id, &subject)?;
        let (staged, outcome) = within(subject.stage(&id, Use::Ext4)).await?;
        need(outcome, &subject)?;
        let (published, outcome) = within(subject.publish(&id, Use::Ext4)).await?;
        need(outcome, &subject)?;
        need(subject.discard(&id).await, &subject)?;
        if round > 1 {
            windows.push([created, staged, published]);
        }
    }
    drop(subject);
    let traced = Traced::read(&log, &root)?;
    Ok(CALLS
        .into_iter()
        .enumerate()
        .map(|(call, what)| {
            let taken: Vec<_> = windows.iter().map(|window| traced.sample(&window[call])).collect();
            Breakdown { what: format!("{what}, {}", filesystem.name()), parts: parts(&taken) }
        })
        .collect())
}

/// strace as a process beside the driver, which is the child then.
fn strace(log: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "--seccomp-bpf", "-ttt", "-T", "-y", "-s", "0", "-e", "signal=none", "-e"]);
    command.arg(format!("trace={}", TRACED.replace(' ', ""))).arg("-o").arg(log);
    command
}

/// From when to when it ran, in seconds since 1970, and what it came to.
async fn within<T>(
    call: impl Future<Output = super::subject::Outcome<T>>,
) -> Result<((f64, f64), super::subject::Outcome<T>)> {
    let start = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let (time, outcome): (Duration, _) = timed(call).await;
    Ok(((start, start + time.as_secs_f64()), outcome))
}

/// A system call: when it began, what it was, how long it took in microseconds.
struct Traced(Vec<(f64, String, f64)>);

impl Traced {
    fn read(log: &Path, root: &Path) -> Result<Self> {
        let text = fs::read_to_string(log).with_context(|| format!("failed to read {}", log.display()))?;
        let mut unfinished: HashMap<&str, (f64, &str)> = HashMap::new();
        let mut calls = Vec::new();
        for line in text.lines() {
            // "PID SECONDS.MICROSECONDS CALL"; the number of a process may be padded.
            let Some((process, rest)) = line.split_once(char::is_whitespace) else { continue };
            let Some((time, call)) = rest.trim_start().split_once(' ') else { continue };
            let Ok(time) = time.parse::<f64>() else { continue };
            if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
                unfinished.insert(process, (time, begun));
                continue;
            }
            let (time, begun) = match call.strip_prefix("<... ") {
                Some(_) => match unfinished.remove(process) {
                    Some(begun) => begun,
                    None => continue,
                },
                None => (time, call),
            };
            if let Some(taken) = duration(call) {
                calls.push((time, describe(begun, root), taken * 1e6));
            }
        }
        calls.sort_by(|one, other| one.0.total_cmp(&other.0));
        Ok(Self(calls))
    }

    fn sample(&self, (start, end): &(f64, f64)) -> Sample {
        let from = self.0.partition_point(|(time, ..)| time < start);
        let mut steps: Vec<(String, f64)> = Vec::new();
        for (_, what, taken) in self.0[from..].iter().take_while(|(time, ..)| time < end) {
            match steps.iter_mut().find(|(known, _)| known == what) {
                Some((_, sum)) => *sum += taken,
                None => steps.push((what.clone(), *taken)),
            }
        }
        Sample { total: (end - start) * 1e6, steps }
    }
}

/// The seconds in `= 0 <0.000123>`.
fn duration(call: &str) -> Option<f64> {
    call.strip_suffix('>')?.rsplit_once('<')?.1.parse().ok()
}

/// The call's name with the first path in it, without what is another in every call: ids, numbers of devices.
fn describe(call: &str, root: &Path) -> String {
    let (name, arguments) = call.split_once('(').unwrap_or((call, ""));
    // Not the directory that the process is in, which strace shows as well.
    let arguments = match arguments.split_once("AT_FDCWD<") {
        Some((before, rest)) => format!("{before}{}", rest.split_once('>').unwrap_or_default().1),
        None => arguments.to_owned(),
    };
    let path = arguments.split(['"', '<', '>']).find(|part| part.starts_with('/') || part.starts_with("socket:"));
    let request = arguments.split(", ").nth(1).filter(|_| name == "ioctl").unwrap_or_default();
    let mut path = path.unwrap_or_default().replace(root.to_str().unwrap_or_default(), "");
    for (prefix, length) in [("v1-", 32), ("t1-", 32), ("s1-", 32)] {
        while let Some(at) = path.find(prefix).filter(|at| path.len() >= at + prefix.len() + length) {
            path.replace_range(at..at + prefix.len() + length, "ID");
        }
    }
    let path: String = path.chars().map(|character| if character.is_ascii_digit() { 'N' } else { character }).collect();
    let mut short = String::new();
    for character in path.chars() {
        if !(character == 'N' && short.ends_with('N')) {
            short.push(character);
        }
    }
    [name, request, &short].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Medians, in the order in which the last call came to them.
fn parts(taken: &[Sample]) -> Vec<Part> {
    let of = |value: &dyn Fn(&Sample) -> f64| {
        let mut values: Vec<f64> = taken.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let mut parts =
        vec![Part { what: "all of it, from outside, below strace".to_owned(), microseconds: of(&|it| it.total) }];
    let Some(last) = taken.last() else { return parts };
    for (what, _) in &last.steps {
        let microseconds =
            of(&|sample| sample.steps.iter().find(|(known, _)| known == what).map_or(0.0, |(_, taken)| *taken));
        if microseconds >= LEAST {
            parts.push(Part { what: format!("- {what}"), microseconds });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_by_what_they_are_made_for() {
        let root = Path::new("/var/tmp/x/xfs/traced");
        let id = "v1-0123456789abcdef0123456789abcdef";
        let call = format!("fsync(12</var/tmp/x/xfs/traced/pool/building/{id}/image>) = 0 <0.000123>");
        assert_eq!(describe(&call, root), "fsync /pool/building/ID/image");
        assert_eq!(duration(&call), Some(0.000_123));
        let call = "openat(AT_FDCWD</somewhere>, \"/dev/loop-control\", O_RDWR) = 3</dev/loop-control> <0.000009>";
        assert_eq!(describe(call, root), "openat /dev/loop-control");
        let call = "ioctl(9</dev/loop12>, LOOP_CONFIGURE, {fd=3}) = 0 <0.000200>";
        assert_eq!(describe(call, root), "ioctl LOOP_CONFIGURE /dev/loopN");
    }

    #[test]
    fn a_call_that_others_interrupt_is_one_call() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let text = "11 1.000000 fsync(3</a> <unfinished ...>\n12 1.000100 fsync(4</b>) = 0 <0.000010>\n\
                    11 1.000200 <... fsync resumed>) = 0 <0.000200>\n";
        fs::write(&log, text).unwrap();
        let traced = Traced::read(&log, Path::new("/root")).unwrap();
        let sample = traced.sample(&(0.9, 1.1));
        assert_eq!(sample.steps.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(), ["fsync /a", "fsync /b"]);
        assert!((sample.steps[0].1 - 200.0).abs() < 0.001);
    }
}
