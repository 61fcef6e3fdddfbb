//! The executable's size, what it needs to start, and how many system calls an ADD makes.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    plugins::Chain,
    subject::{Network as _, Subject},
};
use crate::report::{Figure, Limit};

/// `PT_DYNAMIC` and `PT_INTERP` of a program header, `DT_NEEDED` of an entry of the dynamic section (linux/elf.h).
const DYNAMIC: u64 = 2;
const INTERPRETER: u64 = 3;
const NEEDED: u64 = 1;

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let bytes = fs::read(&bench.keelson).context("failed to read keelson-cni")?;
    // 2.5 MiB are far below what an f64 holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
    let mebibytes = bytes.len() as f64 / f64::from(1 << 20);
    let needs = loaded_at_start(&bytes).context("keelson-cni is no 64-bit ELF file")?;
    let mut figures = vec![
        Figure::new("size of the stripped executable", Some(mebibytes), "MiB", Some(Limit::AtMost(2.5))),
        Figure::new("dynamic libraries and loaders that it needs", Some(needs), "", Some(Limit::AtMost(0.0))),
    ];
    eprintln!("counting system calls");
    for (variant, masquerade) in crate::network::VARIANTS {
        for (name, chain) in [
            ("keelson-cni", Chain::keelson(bench, masquerade)?),
            ("the reference", Chain::reference(bench, masquerade)?),
        ] {
            let calls = system_calls(bench, Subject::new(name, chain, &[])?)?;
            figures.push(Figure::new(format!("system calls of an ADD by {name}, {variant}"), calls, "", None));
        }
    }
    Ok(figures)
}

/// The system calls of one ADD by all the processes that it takes.
fn system_calls(bench: &Bench, mut subject: Subject<Chain>) -> Result<Option<f64>> {
    let file = bench.state("trace")?.join("strace");
    subject.network = subject.network.traced(&file);
    let pod = subject.pod()?;
    if subject.host.run(|| subject.network.add(&pod))?.is_err() {
        return Ok(None);
    }
    let trace = fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
    let calls = u32::try_from(trace.lines().filter(|line| begins_call(line)).count())?;
    ensure!(calls > 0, "strace saw no system call");
    Ok(Some(f64::from(calls)))
}

/// Whether a line of `strace -f` is that of a system call, such as `4711 openat(AT_FDCWD, "/etc", O_RDONLY) = 3`.
///
/// It isn't for what is no call (`+++ exited with 0 +++`), and for the end of one whose beginning was printed before
/// another process's call (`<... openat resumed>`).
fn begins_call(line: &str) -> bool {
    let text = line.trim_start().split_once(' ').map_or("", |(_, text)| text.trim_start());
    text.split_once('(').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// How many dynamic libraries a 64-bit ELF file of this machine's byte order needs, its loader included.
fn loaded_at_start(file: &[u8]) -> Option<f64> {
    if file.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(file.get(at..at + length)?);
        Some(u64::from_le_bytes(bytes))
    };
    let offset = |at: usize| usize::try_from(number(at, 8)?).ok();
    let (table, size, count) = (offset(32)?, number(54, 2)?, number(56, 2)?);
    let mut needed = 0;
    for index in 0..count {
        let header = table + usize::try_from(index * size).ok()?;
        match number(header, 4)? {
            INTERPRETER => needed += 1,
            DYNAMIC => {
                let (start, length) = (offset(header + 8)?, offset(header + 32)?);
                for entry in (start..start + length).step_by(16) {
                    needed += i32::from(number(entry, 8)? == NEEDED);
                }
            }
            _ => {}
        }
    }
    Some(needed.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_beginnings_of_calls_count() {
        for (line, is_one) in [
            ("4711 openat(AT_FDCWD, \"/etc\", O_RDONLY) = 3", true),
            ("4711 read(0,  <unfinished ...>", true),
            ("4712 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED (1)} ---", false),
            ("4711 <... read resumed>\"\", 16) = 0", false),
            ("4711 +++ exited with 0 +++", false),
        ] {
            assert_eq!(begins_call(line), is_one, "{line}");
        }
    }

    #[test]
    fn this_test_needs_libraries() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        // Tests are built with the platform's defaults: a loader and the C library at the least.
        assert!(loaded_at_start(&this).unwrap() >= 2.0);
        assert_eq!(loaded_at_start(b"#!/bin/sh\n"), None);
    }
}
