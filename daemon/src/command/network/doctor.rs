//! `keelson network doctor`.

use clap::Args;
use keelson_cni::operator::{Installation, Severity, doctor};

use super::{PlaceArguments, finding_text};
use crate::{
    command::{
        Format,
        output::{print, print_json},
    },
    error::Failure,
    plugins,
};

#[derive(Debug, Args)]
pub(in crate::command) struct DoctorArguments {
    #[command(flatten)]
    places: PlaceArguments,
}

pub(super) fn run(arguments: &DoctorArguments) -> Result<(), Failure> {
    let settings = arguments.places.settings()?;
    // Without the original beside us its copy can't be compared.
    let executable = plugins::find_cni_executable().ok();
    let installation = settings.as_ref().map(|settings| Installation { settings, executable: executable.as_deref() });
    let findings = doctor(&arguments.places.places(settings.as_ref()), installation)?;
    if arguments.places.output == Format::Json {
        print_json(&findings)?;
    } else if findings.is_empty() {
        print("nothing is wrong\n")?;
    } else {
        print(&findings.iter().map(finding_text).collect::<String>())?;
    }
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(()),
        errors => Err(Failure::Findings { errors }),
    }
}
