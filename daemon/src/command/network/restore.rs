//! `keelson network restore`: once what the network process does all the time.

use clap::Args;
use keelson_cni::operator::restore;

use super::{PlaceArguments, plain};
use crate::{
    command::{
        Format,
        output::{print, print_json},
    },
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct RestoreArguments {
    #[command(flatten)]
    places: PlaceArguments,
}

pub(super) fn run(arguments: &RestoreArguments) -> Result<(), Failure> {
    let settings = arguments.places.settings()?;
    let repairs = restore(&arguments.places.places(settings.as_ref()), settings.as_ref())?;
    if arguments.places.output == Format::Json {
        return print_json(&repairs);
    }
    if repairs.is_empty() {
        return print("nothing was missing\n");
    }
    let line = |what: &str, missing: &str| format!("restored {what}: {}\n", plain(missing));
    print(&repairs.iter().map(|repair| line(repair.what, &repair.missing)).collect::<String>())
}
