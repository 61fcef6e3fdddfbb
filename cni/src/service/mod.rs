//! The protocol's edge: one file per verb.

mod add;
mod check;
mod del;
mod delegate;
mod gc;
mod heal;
mod host_local;
mod ipam;
mod loopback;
mod portmap;
mod rules;
mod source_routing;
mod status;
mod version;
mod wire;

use std::{
    env,
    io::{self, Read, Write},
    panic,
    path::PathBuf,
    process::ExitCode,
};

pub use gc::{GcEntry, GcError, GcOptions, GcReport, collect_garbage};
use serde_json::Value;

pub(crate) use add::{new_record, with_gateway};
pub(crate) use delegate::DelegateError;
pub(crate) use rules::{all_differences as rule_differences, ensure as ensure_rules, restore};
pub(crate) use source_routing::missing as missing_source_rules;

use crate::{
    calls::{self, Call},
    config::{
        invocation::{self, Command, Invocation},
        network::{NetworkConfig, stated_version},
        persona::{Executable, Persona},
        version::SpecVersion,
    },
    error::{Failure, panic_json},
};

/// No network config needs more; what is longer isn't one.
const LONGEST_CONFIG: u64 = 16 * 1024 * 1024;

/// Serves one CNI call: the environment and stdin in, a result or an error on stdout, the exit code out.
///
/// Must be called at the start of a process of its own that has one thread: it enters network namespaces.
pub fn run() -> ExitCode {
    panic::set_hook(Box::new(|info| {
        // The runtime reads stdout; a message on stderr alone would leave it with "exit status 134".
        print(&panic_json(&info.to_string()));
        eprintln!("{info}");
    }));
    calls::start();
    let executable = Executable::called(env::args_os().next().as_deref());
    let Served { outcome, version, call } = serve(&executable);
    let log = call.and_then(|(directory, call)| Some((directory, ended(call, outcome.as_ref().err())?)));
    let exit_code = answer(&executable, outcome, version);
    if let Some((directory, call)) = log {
        calls::finish(&directory, call, env::var("TRACEPARENT").ok().as_deref());
    }
    exit_code
}

/// Prints what came of the call.
fn answer(executable: &Executable, outcome: Result<Option<Value>, Failure>, version: SpecVersion) -> ExitCode {
    match outcome {
        Ok(output) => {
            if let Some(output) = output
                && !print(&output)
            {
                // Nobody received the result; DEL or a repeated ADD finds the attachment by its record.
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}: {}", executable.name, failure.one_line());
            print(&failure.to_json(version));
            ExitCode::FAILURE
        }
    }
}

/// What came of a call.
struct Served {
    outcome: Result<Option<Value>, Failure>,
    /// The spec version that an error is printed in.
    version: SpecVersion,
    /// What its log says, and where that is, if the network is known.
    call: Option<(PathBuf, Call)>,
}

/// Runs the call.
fn serve(executable: &Executable) -> Served {
    let unlogged = |outcome| Served { outcome, version: SpecVersion::NEWEST, call: None };
    let invocation = match invocation::read(|name| env::var_os(name)) {
        Ok(Some(invocation)) => invocation,
        Ok(None) => {
            about(executable);
            return unlogged(Ok(None));
        }
        Err(error) => return unlogged(Err(error.into())),
    };
    let mut config = Vec::new();
    let reading = calls::phase("read stdin");
    if let Err(error) = io::stdin().lock().take(LONGEST_CONFIG).read_to_end(&mut config) {
        return unlogged(Err(Failure::Stdin(error)));
    }
    drop(reading);
    if invocation == Invocation::Network(Command::Version) {
        return unlogged(version::version(&config).map(Some));
    }
    let parsing = calls::phase("parse");
    let config = match NetworkConfig::parse(&config, executable) {
        Ok(config) => config,
        Err(error) => {
            let stated = stated_version(&config).ok().flatten();
            let version = stated.and_then(|stated| SpecVersion::parse(&stated)).unwrap_or(SpecVersion::NEWEST);
            return Served { version, ..unlogged(Err(error.into())) };
        }
    };
    drop(parsing);
    // The reference reads every file in host-local's directory on every call: no log belongs there.
    let is_logged = config.persona() != Persona::HostLocal;
    let call = is_logged.then(|| (config.data_dir.join(&config.name), about_call(&invocation)));
    Served { outcome: dispatch(&invocation, &config), version: config.version, call }
}

/// Who is called about.
fn about_call(invocation: &Invocation) -> Call {
    let (command, call) = match invocation {
        Invocation::Network(command) => (command, Call::default()),
        Invocation::Attachment(command, about) => {
            let (key, pod) = (&about.key, &about.args.pod);
            let pod = if pod.name.is_empty() { String::new() } else { format!("{}/{}", pod.namespace, pod.name) };
            let (container_id, ifname) = (key.container_id.clone(), key.ifname.clone());
            (command, Call { container_id, ifname, pod, ..Call::default() })
        }
    };
    Call { verb: command.to_string(), ..call }
}

/// How it ended; `None` if it isn't worth a line: a kubelet asks for STATUS every few seconds.
fn ended(call: Call, failure: Option<&Failure>) -> Option<Call> {
    match failure {
        Some(failure) => {
            Some(Call { code: failure.code(), message: failure.one_line(), errno: failure.errno(), ..call })
        }
        None => (call.verb != Command::Status.to_string()).then_some(call),
    }
}

fn dispatch(invocation: &Invocation, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match invocation {
        Invocation::Attachment(Command::Check, _) => require(config, "CHECK", SpecVersion::V0_4_0)?,
        Invocation::Attachment(..) => {}
        Invocation::Network(Command::Gc) => require(config, "GC", SpecVersion::V1_1_0)?,
        // `read` gives no other verbs without an attachment than these two; VERSION has been served.
        Invocation::Network(_) => require(config, "STATUS", SpecVersion::V1_1_0)?,
    }
    match config.persona() {
        Persona::Network | Persona::PointToPoint => serve_network(invocation, config),
        Persona::PortMap => serve_ports(invocation, config),
        Persona::HostLocal => host_local::serve(invocation, config),
        Persona::Loopback => loopback::serve(invocation, config),
    }
}

fn serve_ports(invocation: &Invocation, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match invocation {
        Invocation::Attachment(Command::Add, call) => portmap::add(config, call).map(Some),
        Invocation::Attachment(Command::Check, call) => portmap::check(config, call).map(|()| None),
        Invocation::Attachment(_, call) => portmap::del(config, call).map(|()| None),
        Invocation::Network(_) => serve_network(invocation, config),
    }
}

fn serve_network(invocation: &Invocation, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match invocation {
        Invocation::Attachment(Command::Add, call) if config.is_ipam => ipam::add(config, call).map(Some),
        Invocation::Attachment(Command::Add, call) => add::add(config, call).map(Some),
        Invocation::Attachment(Command::Check, call) if config.is_ipam => ipam::check(config, call).map(|()| None),
        Invocation::Attachment(Command::Check, call) => check::check(config, call).map(|()| None),
        // `read` gives no other verb with an attachment than these three.
        Invocation::Attachment(_, call) => del::del(config, call).map(|()| None),
        Invocation::Network(Command::Gc) => gc::gc(config).map(|()| None),
        Invocation::Network(_) => status::status(config).map(|()| None),
    }
}

fn require(config: &NetworkConfig, verb: &'static str, since: SpecVersion) -> Result<(), Failure> {
    if config.version < since {
        return Err(Failure::VerbTooNew { verb, since, config: config.version });
    }
    Ok(())
}

/// What the spec wants said to somebody who calls the plugin by hand.
fn about(executable: &Executable) {
    let versions: Vec<&str> = SpecVersion::ALL.iter().map(|version| version.as_str()).collect();
    eprintln!("CNI plugin {} (keelson-cni v{})", executable.name, env!("CARGO_PKG_VERSION"));
    eprintln!("CNI protocol versions supported: {}", versions.join(", "));
}

/// Prints one line on stdout; whether somebody took it.
fn print(value: &Value) -> bool {
    let mut line = value.to_string();
    line.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}
