//! `keelson config`: print, check and explain the config.

use clap::{Args, Subcommand};
use keelson_host::{HostRoot, Problem, Problems};
use serde::Serialize;

use super::{
    ConfigArguments, Format,
    output::{print, print_json, table},
};
use crate::{
    config::{self, ConfigError, NodeConfig},
    error::Failure,
    plugins,
};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a config with every key, its default and what it means
    Default,
    /// Tell everything that is wrong with the config, reading the host and changing nothing
    Check(ReadArguments),
    /// Print the config as it is used, with where each value came from
    Show(ReadArguments),
    /// Print the config's JSON schema
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct ReadArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Default => print(config::DEFAULT),
        ConfigCommand::Check(arguments) => check(arguments),
        ConfigCommand::Show(arguments) => show(arguments),
        ConfigCommand::Schema => print_json(&config::schema()),
    }
}

/// The answer of `keelson config check -o json`.
#[derive(Serialize)]
struct Checked<'a> {
    valid: bool,
    plugins: Vec<&'static str>,
    problems: Vec<CheckedProblem<'a>>,
}

#[derive(Serialize)]
struct CheckedProblem<'a> {
    path: &'a str,
    value: &'a str,
    wrong: &'a str,
    remedy: &'a str,
}

fn check(arguments: &ReadArguments) -> Result<(), Failure> {
    let loaded = load(&arguments.config);
    let (plugins, problems) = match &loaded {
        Ok(config) => {
            let enabled = config.enabled();
            let problems: Vec<Problem> = enabled
                .iter()
                .filter_map(|plugin| plugins::check(*plugin, config).err())
                .flat_map(|problems| problems.0)
                .collect();
            (enabled.iter().map(|plugin| plugin.name()).collect(), Problems(problems))
        }
        Err(ConfigError::Invalid { problems, .. }) => (Vec::new(), problems.clone()),
        Err(ConfigError::Syntax { message, .. }) => {
            let problem = Problem::new("", "", format!("is not valid YAML: {message}"), "");
            (Vec::new(), problem.into())
        }
        Err(error @ ConfigError::Read { .. }) => (Vec::new(), Problem::new("", "", error.to_string(), "").into()),
    };
    if arguments.output == Format::Json {
        let problems: Vec<_> = problems
            .0
            .iter()
            .map(|Problem { path, value, wrong, remedy }| CheckedProblem { path, value, wrong, remedy })
            .collect();
        print_json(&Checked { valid: problems.is_empty(), plugins, problems })?;
    } else if problems.0.is_empty() {
        let path = arguments.config.config.display();
        print(&format!(
            "{path}: valid; plugins: {}\n",
            if plugins.is_empty() { "none".to_owned() } else { plugins.join(", ") }
        ))?;
    }
    let config = loaded?;
    problems.into_result(()).map_err(|problems| Failure::Section { path: config.path().to_owned(), problems })
}

fn show(arguments: &ReadArguments) -> Result<(), Failure> {
    let config = load(&arguments.config)?;
    let effective =
        config.effective().map_err(|problems| Failure::Section { path: config.path().to_owned(), problems })?;
    if arguments.output == Format::Json {
        return print_json(&effective);
    }
    let mut rows = vec![["KEY", "VALUE", "ORIGIN"].map(str::to_owned)];
    rows.extend(
        effective.iter().map(|(path, found)| [path.clone(), found.value.to_string(), found.origin.to_string()]),
    );
    print(&table(&rows))
}

fn load(arguments: &ConfigArguments) -> Result<NodeConfig, ConfigError> {
    NodeConfig::load(&arguments.config, HostRoot::at(&arguments.host.host_root))
}
