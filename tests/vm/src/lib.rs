//! The VM tier: test programs of the workspace in a guest with Debian's stock kernel, pure cgroup v2, /run on tmpfs,
//! real reboots and power cuts.
//!
//! A [`Shape`] says what a guest looks like and what happens in it; [`SHAPES`] is the table to add one to. The host
//! drives: a shell in the guest takes one command a line over a virtio port and sends back what it prints, so nothing
//! has to be made beforehand for a new shape. The workspace is the guest's too, read-only and at the same path; so the
//! programs run as cargo built them.

mod cpio;
mod guest;
mod machine;
mod modules;
mod programs;
mod root;
mod shape;

use std::{
    fs::OpenOptions,
    hash::{BuildHasher, RandomState},
    io::Write,
    ops::ControlFlow,
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use keelson_testkit::VM_CALL;

pub use root::Root;
pub use shape::{Disk, NumaNode, SHAPES, Shape, Step, Tests};

use crate::{
    guest::{SCENARIOS, SKIPS, script},
    machine::Machine,
    programs::Program,
};

/// Files that what guests' tests write is appended to, as the tests of other tiers do it by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// What they skip.
    pub skips: &'a Path,
    /// Which of the reference's scenarios they play.
    pub scenarios: &'a Path,
}

/// Boots `shape` and takes its steps. Each line that the tests print goes to `line`; progress goes to stderr. With parts
/// in `only`, the test programs are left out that have none of them in their names. Gives whether every test program
/// ended well.
///
/// # Errors
///
/// When the programs don't build, or the guest doesn't boot, hangs or dies, with the end of its console. A failing
/// test is none: its lines say so, and the steps after it are still taken.
pub fn run(shape: &Shape, root: &Root, only: &[String], logs: Logs<'_>, line: &mut dyn FnMut(&str)) -> Result<bool> {
    let mut programs = programs::build(shape)?;
    for tests in shape.tests() {
        let found = programs.iter().any(|program| tests.names(&program.package, &program.target));
        ensure!(found, "{} has no test program {}", tests.package, tests.target);
    }
    programs.retain(|program| only.is_empty() || only.iter().any(|part| program.target.contains(part)));
    ensure!(!programs.is_empty(), "shape {} runs no test program named {}", shape.name, only.join(" or "));
    let shares = programs::shares(&programs)?;
    let directory = programs::target_directory(&programs).join("vm").join(shape.name);
    let mut machine = Machine::new(shape, root, &shares, directory)?;
    let start = Instant::now();
    machine.boot()?;
    eprintln!("shape {}: {}; booted in {} s", shape.name, shape.describe(), start.elapsed().as_secs());
    let mut well = true;
    for step in shape.steps {
        match step {
            Step::Run(tests) => {
                for (pattern, reason) in tests.without {
                    eprintln!("shape {}: without {}::*{pattern}*: {reason}", shape.name, tests.target);
                }
                for program in select(&programs, tests) {
                    eprintln!("shape {}: {} of {}", shape.name, program.target, program.package);
                    let status = machine.command(&script(machine.shape(), program, tests), &mut |text| {
                        line(text);
                        ControlFlow::Continue(())
                    })?;
                    well &= status == Some(0);
                }
                collect(&mut machine, logs)?;
            }
            Step::Reboot => {
                eprintln!("shape {}: reboots", shape.name);
                machine.reboot()?;
            }
            Step::CutPowerDuring(tests) => {
                for program in select(&programs, tests) {
                    cut_power_during(&mut machine, program, tests)?;
                }
            }
        }
    }
    Ok(well)
}

/// Lets a program work for a random while, and takes the power away.
fn cut_power_during(machine: &mut Machine<'_>, program: &Program, tests: &Tests) -> Result<()> {
    /// Enough for calls of every kind to be under way, and little enough to cut several times.
    const LINES: u64 = 60;
    let wanted = 1 + RandomState::new().hash_one(0) % LINES;
    let (mut seen, mut heard) = (Vec::new(), Vec::new());
    let ended = machine.command(&script(machine.shape(), program, tests), &mut |text| {
        seen.push(text.to_owned());
        // libtest's own words come before the first call's, perhaps on the same line.
        heard.extend(text.split_once(VM_CALL).map(|(_, call)| call.to_owned()));
        if heard.len() as u64 >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    ensure!(ended.is_none(), "{} was to work until the power is cut, but ended:\n{}", program.target, seen.join("\n"));
    eprintln!("shape {}: power cut during {}, after {wanted} lines", machine.shape().name, program.target);
    machine.cut_power()?;
    let told = machine.command(&guest::tell(&heard), &mut |_| ControlFlow::Continue(()))?;
    ensure!(told == Some(0), "the guest can't keep what was heard");
    Ok(())
}

fn select<'a>(programs: &'a [Program], tests: &Tests) -> impl Iterator<Item = &'a Program> {
    programs.iter().filter(|program| tests.names(&program.package, &program.target))
}

/// Brings over what the guest's tests wrote beside their output.
fn collect(machine: &mut Machine<'_>, logs: Logs<'_>) -> Result<()> {
    let skipped_in = format!(" (shape {})", machine.shape().name);
    for (source, log, ending) in [(SKIPS, logs.skips, skipped_in.as_str()), (SCENARIOS, logs.scenarios, "")] {
        let mut lines = Vec::new();
        machine.command(&format!("cat {source} 2>/dev/null; rm -f {source}"), &mut |text| {
            lines.push(format!("{text}{ending}"));
            ControlFlow::Continue(())
        })?;
        let opened = OpenOptions::new().create(true).append(true).open(log);
        let mut file = opened.with_context(|| format!("failed to open {}", log.display()))?;
        for line in lines {
            writeln!(file, "{line}").with_context(|| format!("failed to write {}", log.display()))?;
        }
    }
    Ok(())
}
