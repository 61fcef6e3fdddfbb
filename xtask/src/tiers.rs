//! `cargo xtask test`: the tiers in their order, what each skipped, and what was left behind.

use std::{
    fmt, fs,
    io::{BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{ValueEnum, builder::PossibleValue};
use keelson_testkit::{SCENARIO_LOG, SKIP_LOG, Snapshot, Tool};
use tempfile::NamedTempFile;

use crate::{
    fuzz,
    machine::{PACKAGES, VM_PACKAGES, check_go, check_privileges, provide_packages, provide_tools},
    mutants,
    run::{cargo, check},
    scenarios,
};

/// What `cargo xtask test` may be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The tiers to run; unit, kernel, protocol and node if none is named
    tiers: Vec<Choice>,
    /// Refuse to install or build third-party programs: say what is missing instead
    #[arg(long)]
    no_install: bool,
    /// How many seconds the fuzz tier takes for each of its targets
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// In the VM tier, run only the test files that have this in their names; may be given several times
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    #[command(flatten)]
    mutants: mutants::Selection,
}

/// A tier of the tests, told apart by the names of the test files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Pure decisions and parsers: needs nothing
    Unit,
    /// The real kernel: network namespaces, nftables, loop devices, mounts (root)
    Kernel,
    /// csi-sanity, cnitool, the published contracts, strict fakes of kubelet and runtime (root)
    Protocol,
    /// Pods on a real containerd through all four plugins (root)
    Node,
    /// Changed inputs at every parser that meets the outside, guided by which branches they take; only if named
    Fuzz,
    /// The kernel tier and what no machine survives, in guests with Debian's kernel under qemu (root)
    Vm,
    /// One thing at a time changed in the plugin's decisions, parsers and store: a unit test must notice; hours, only if
    /// named
    Mutants,
}

/// What a tier can be asked for with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    One(Tier),
    All,
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        const VARIANTS: [Choice; Tier::ALL.len() + 2] = {
            let mut variants = [Choice::All; Tier::ALL.len() + 2];
            let mut index = 0;
            while index < Tier::ALL.len() {
                variants[index] = Choice::One(Tier::ALL[index]);
                index += 1;
            }
            variants[index] = Choice::One(Tier::Mutants);
            variants
        };
        &VARIANTS
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::One(tier) => tier.to_possible_value(),
            Self::All => Some(PossibleValue::new("all").help("All of these but mutants")),
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Protocol => "protocol",
            Self::Node => "node",
            Self::Fuzz => "fuzz",
            Self::Vm => "vm",
            Self::Mutants => "mutants",
        })
    }
}

impl Tier {
    /// The tiers that take minutes.
    const ALL: [Self; 6] = [Self::Unit, Self::Kernel, Self::Protocol, Self::Node, Self::Fuzz, Self::Vm];

    /// The tiers that run when none is named.
    const USUAL: [Self; 4] = [Self::Unit, Self::Kernel, Self::Protocol, Self::Node];

    /// Whether it needs neither privileges nor programs.
    fn is_pure(self) -> bool {
        matches!(self, Self::Unit | Self::Fuzz | Self::Mutants)
    }

    /// Whether it builds what it runs otherwise than the rest.
    fn builds_its_own(self) -> bool {
        matches!(self, Self::Fuzz | Self::Mutants)
    }

    fn tools(self) -> &'static [Tool] {
        match self {
            Self::Unit | Self::Kernel | Self::Fuzz | Self::Vm | Self::Mutants => &[],
            Self::Protocol => &[Tool::CniPlugins, Tool::Cnitool, Tool::CsiSanity],
            Self::Node => &[Tool::Containerd],
        }
    }

    /// The cargo invocations that make up the tier.
    fn commands(self, options: &Options) -> Vec<Command> {
        let test = |targets: &[&str]| {
            let mut command = cargo("test");
            command.args(["--workspace", "--no-fail-fast"]).args(targets);
            command
        };
        match self {
            Self::Unit => vec![test(&["--lib", "--bins", "--test", "unit_*"]), test(&["--doc"])],
            Self::Kernel => vec![test(&["--test", "kernel_*"])],
            Self::Protocol => vec![test(&["--test", "protocol_*"])],
            Self::Node => vec![test(&["--test", "node_*"])],
            Self::Fuzz => vec![fuzz::command(options.seconds)],
            // The programs of the one run in guests, and the others are run once for each mutant.
            Self::Vm | Self::Mutants => vec![],
        }
    }
}

/// What one tier came to.
#[derive(Debug, Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: Vec<String>,
    left_behind: Vec<String>,
    /// Why nothing can be said of what was left behind.
    unchecked: Option<String>,
    broken: bool,
    seconds: u64,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.failed == 0 && !self.broken && self.left_behind.is_empty() && self.passed > 0
    }

    /// Adds what libtest's closing line says: `test result: ok. 5 passed; 0 failed; 0 ignored; ...`.
    fn count(&mut self, line: &str) {
        let Some(counts) = line.trim().strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for part in counts.1.split("; ") {
            let (number, what) = part.split_once(' ').unwrap_or((part, ""));
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// What the tests write while they run, beside their output.
struct Logs {
    /// What one tier skips.
    skips: NamedTempFile,
    /// The reference's scenarios that all tiers play.
    scenarios: NamedTempFile,
}

impl Logs {
    fn new() -> Result<Self> {
        let file = || NamedTempFile::new().context("failed to make a log for the tests");
        Ok(Self { skips: file()?, scenarios: file()? })
    }
}

/// Runs the tiers and sums up.
///
/// # Errors
///
/// When the machine lacks something. Failing tests are the exit code, after every tier has run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let tiers = chosen(&options.tiers);
    if tiers.iter().any(|tier| !tier.is_pure()) {
        check_privileges()?;
        provide_packages(&PACKAGES, options.no_install)?;
    }
    let root = if tiers.contains(&Tier::Vm) {
        provide_packages(&VM_PACKAGES, options.no_install)?;
        Some(keelson_vm::Root::ensure(options.no_install)?)
    } else {
        None
    };
    if tiers.contains(&Tier::Protocol) {
        // The published contracts are taken out of Go modules, however many tools are built already.
        check_go()?;
    }
    for tier in &tiers {
        provide_tools(tier.tools(), options.no_install)?;
    }
    // The suite's programs, which the tests of another package start.
    if !tiers.iter().all(|tier| tier.builds_its_own()) {
        check(cargo("build").args(["--workspace", "--bins"]))?;
    }

    let logs = Logs::new()?;
    let mut outcomes = Vec::new();
    for tier in &tiers {
        println!("\n== {tier} ==");
        outcomes.push((*tier, run_tier(*tier, root.as_ref(), options, &logs)?));
    }
    // The reference's scenarios are played in three tiers; a run of less can't tell which are missing.
    let differences = if [Tier::Unit, Tier::Kernel, Tier::Protocol].iter().all(|tier| tiers.contains(tier)) {
        scenarios::check(logs.scenarios.path(), tiers.contains(&Tier::Vm) && options.only.is_empty())?
    } else {
        Vec::new()
    };
    report(&outcomes, &differences);
    let good = differences.is_empty() && outcomes.iter().all(|(_, outcome)| outcome.is_good());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The tiers that `choices` name, each once.
fn chosen(choices: &[Choice]) -> Vec<Tier> {
    if choices.is_empty() {
        return Tier::USUAL.to_vec();
    }
    let mut tiers = Vec::new();
    for choice in choices {
        let named = match choice {
            Choice::One(tier) => std::slice::from_ref(tier),
            Choice::All => &Tier::ALL,
        };
        for tier in named {
            if !tiers.contains(tier) {
                tiers.push(*tier);
            }
        }
    }
    tiers
}

fn run_tier(tier: Tier, root: Option<&keelson_vm::Root>, options: &Options, logs: &Logs) -> Result<Outcome> {
    let log = logs.skips.path();
    fs::write(log, "").context("failed to empty the log of skips")?;
    let before = match Snapshot::take() {
        // These tiers must run without root and without any program; they make nothing in the kernel.
        Err(error) if tier.is_pure() => Err(format!("{error:#}")),
        before => Ok(before?),
    };
    let start = Instant::now();
    let mut outcome = Outcome::default();
    for mut command in tier.commands(options) {
        command.env(SKIP_LOG, log).env(SCENARIO_LOG, logs.scenarios.path()).stdout(Stdio::piped());
        if thread::available_parallelism().is_ok_and(|threads| threads.get() == 1) {
            // A single thread would be libtest's own, and both logs name a test by its thread.
            command.env("RUST_TEST_THREADS", "2");
        }
        let mut child = command.spawn().with_context(|| format!("failed to run {command:?}"))?;
        let Some(stdout) = child.stdout.take() else { bail!("cargo test has no standard output") };
        for line in BufReader::new(stdout).lines() {
            let line = line.context("failed to read what cargo test prints")?;
            println!("{line}");
            outcome.count(&line);
        }
        // A test program that doesn't build or is killed prints no closing line.
        outcome.broken |= !child.wait()?.success();
    }
    if let (Tier::Vm, Some(root)) = (tier, root) {
        run_shapes(root, &options.only, logs, &mut outcome);
    }
    if tier == Tier::Mutants {
        run_mutants(&options.mutants, &mut outcome)?;
    }
    outcome.seconds = start.elapsed().as_secs();
    match before {
        Ok(before) => outcome.left_behind = before.since()?.0,
        Err(reason) => outcome.unchecked = Some(reason),
    }
    let skips = fs::read_to_string(log).context("failed to read the log of skips")?;
    outcome.skipped = skips.lines().map(str::to_owned).collect();
    Ok(outcome)
}

/// The VM tier: every shape that runs something of what is wanted, whatever becomes of the others.
fn run_shapes(root: &keelson_vm::Root, only: &[String], logs: &Logs, outcome: &mut Outcome) {
    let paths = keelson_vm::Logs { skips: logs.skips.path(), scenarios: logs.scenarios.path() };
    for shape in keelson_vm::SHAPES {
        let ran = shape.programs(only).and_then(|programs| {
            if programs.is_empty() && !only.is_empty() {
                println!("shape {}: not run, it has no test program named {}", shape.name, only.join(" or "));
                return Ok(true);
            }
            keelson_vm::run(shape, root, only, paths, &mut |line| {
                println!("{line}");
                outcome.count(line);
            })
        });
        match ran {
            Ok(well) => outcome.broken |= !well,
            Err(error) => {
                println!("shape {}: {error:#}", shape.name);
                outcome.broken = true;
            }
        }
    }
}

/// The mutants tier: a mutant that a test notices has passed, and one that none notices has failed.
fn run_mutants(selection: &mutants::Selection, outcome: &mut Outcome) -> Result<()> {
    let mutants = mutants::run(selection)?;
    for mutant in &mutants.timed_out {
        println!("timed out: {mutant}");
    }
    for mutant in &mutants.missed {
        println!("survived: {mutant}");
    }
    let (timed_out, survived) = (mutants.timed_out.len(), mutants.known + mutants.missed.len());
    println!("{} caught, {timed_out} timed out, {survived} survived, {} of them known", mutants.caught, mutants.known);
    outcome.passed += (mutants.caught + timed_out) as u64;
    outcome.failed += mutants.missed.len() as u64;
    Ok(())
}

fn report(outcomes: &[(Tier, Outcome)], differences: &[String]) {
    let mut out = std::io::stdout().lock();
    let mut lines = vec![String::new(), "TIER      PASSED  FAILED  SKIPPED  IGNORED  LEFT BEHIND  TIME".to_owned()];
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (tier, outcome) in outcomes {
        lines.push(format!(
            "{tier:<9} {:>6}  {:>6}  {:>7}  {:>7}  {:>11}  {:>3} s{}",
            outcome.passed.saturating_sub(outcome.skipped.len() as u64),
            outcome.failed,
            outcome.skipped.len(),
            outcome.ignored,
            outcome.left_behind.len(),
            outcome.seconds,
            if outcome.is_good() { "" } else { "  FAILED" },
        ));
        // A skipped test returns early, so libtest has counted it as passed.
        passed += outcome.passed.saturating_sub(outcome.skipped.len() as u64);
        failed += outcome.failed.max(u64::from(!outcome.is_good()));
        skipped += outcome.skipped.len();
    }
    for (tier, outcome) in outcomes {
        lines.extend(outcome.skipped.iter().map(|skip| format!("skipped ({tier}): {skip}")));
        lines.extend(outcome.unchecked.iter().map(|reason| format!("not checked for leftovers ({tier}): {reason}")));
        lines.extend(outcome.left_behind.iter().map(|thing| format!("left behind ({tier}): {thing}")));
    }
    if outcomes.iter().any(|(_, outcome)| !outcome.left_behind.is_empty()) {
        lines.push("hint: what another keelson or nodelab on this machine made meanwhile is counted, too".to_owned());
    }
    lines.extend(differences.iter().map(|difference| format!("reference's scenarios: {difference}")));
    lines.push(String::new());
    lines.push(format!("{passed} passed, {failed} failed, {skipped} skipped"));
    // The reader may have gone; the exit code still tells.
    let _ = writeln!(out, "{}", lines.join("\n"));
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_libtest_says() {
        let mut outcome = Outcome::default();
        outcome.count("test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        outcome
            .count("test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        outcome.count("test something ... ok");
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (7, 3, 1));
        assert!(!outcome.is_good());
    }

    #[test]
    fn tiers_run_once_and_the_vm_when_asked_for() {
        assert_eq!(chosen(&[]), Tier::USUAL);
        assert_eq!(chosen(&[Choice::One(Tier::Vm)]), [Tier::Vm]);
        assert_eq!(
            chosen(&[Choice::One(Tier::Node), Choice::All]),
            [Tier::Node, Tier::Unit, Tier::Kernel, Tier::Protocol, Tier::Fuzz, Tier::Vm]
        );
        assert_eq!(chosen(&[Choice::One(Tier::Mutants), Choice::One(Tier::Fuzz)]), [Tier::Mutants, Tier::Fuzz]);
        assert_eq!([&Tier::ALL[..], &[Tier::Mutants]].concat(), Tier::value_variants());
    }

    #[test]
    fn a_tier_without_a_test_or_with_leftovers_is_not_good() {
        assert!(!Outcome::default().is_good());
        let passed = Outcome { passed: 1, ..Outcome::default() };
        assert!(passed.is_good());
        assert!(!Outcome { left_behind: vec!["link x".to_owned()], ..passed }.is_good());
    }
}
