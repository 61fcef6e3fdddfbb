//! `keelson run`: the supervisor, or with `--only` one plugin.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use keelson_host::{HostRoot, error_chain};

use super::ConfigArguments;
use crate::{
    config::{ConfigError, NodeConfig},
    error::Failure,
    observability::init_log,
    plugins::{self, PluginKind},
    supervisor::{self, Launch, Report, SupervisorLink},
};

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Run this plugin in this process, without a supervisor
    #[arg(long, value_name = "PLUGIN")]
    only: Option<PluginKind>,
    /// error, warn, info, debug, trace, or a filter such as keelson_csi=debug; wins over $RUST_LOG [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Standard input is the supervisor's socket
    #[arg(long, hide = true, requires = "only")]
    supervised: bool,
}

pub(super) fn run(arguments: &RunArguments) -> ExitCode {
    if let Err(error) = init_log(arguments.log_level.as_deref()) {
        eprintln!("keelson: {error}");
        return ExitCode::from(2);
    }
    let outcome = match arguments.only {
        Some(plugin) => only(plugin, arguments),
        None => supervise(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let plugin = arguments.only.map(PluginKind::name);
            match problems(&failure) {
                Some(problems) => {
                    for problem in problems.lines() {
                        tracing::error!(plugin, config = %arguments.config.config.display(), "{problem}");
                    }
                }
                None => tracing::error!(plugin, "{}", error_chain(&failure)),
            }
            failure.exit_code()
        }
    }
}

fn supervise(arguments: &RunArguments) -> Result<(), Failure> {
    let config = load(arguments)?;
    let launch = Launch {
        program: PathBuf::from("/proc/self/exe"),
        config: arguments.config.config.clone(),
        host_root: arguments.config.host.host_root.clone(),
        log_level: arguments.log_level.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::System { action: "start the event loop", source })?;
    runtime.block_on(supervisor::run(&config, launch))
}

fn only(plugin: PluginKind, arguments: &RunArguments) -> Result<(), Failure> {
    let link = arguments
        .supervised
        .then(SupervisorLink::take)
        .transpose()
        .map_err(|source| Failure::System { action: "reach the supervisor", source })?;
    let outcome = load(arguments).and_then(|config| plugins::run(plugin, &config, link.as_ref()));
    if let (Err(failure), Some(link)) = (&outcome, link)
        && let Some(problems) = problems(failure)
    {
        link.report(&Report::Misconfigured { problems });
    }
    outcome
}

fn load(arguments: &RunArguments) -> Result<NodeConfig, Failure> {
    let root = HostRoot::at(&arguments.config.host.host_root);
    Ok(NodeConfig::load(&arguments.config.config, root)?)
}

/// What is wrong with the config, one problem a line, if that is what failed.
fn problems(failure: &Failure) -> Option<String> {
    match failure {
        Failure::Section { problems, .. } | Failure::Config(ConfigError::Invalid { problems, .. }) => {
            Some(problems.to_string())
        }
        Failure::Config(error) => Some(error_chain(error)),
        _ => None,
    }
}
