//! `keelson network explain`.

use clap::Args;
use keelson_cni::{ERROR_CODES, explain};

use crate::{
    command::{
        Format,
        output::{print, print_json, table},
    },
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct ExplainArguments {
    /// The error's code; all of them without
    code: Option<u32>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(arguments: &ExplainArguments) -> Result<(), Failure> {
    let Some(code) = arguments.code else {
        if arguments.output == Format::Json {
            return print_json(ERROR_CODES);
        }
        let mut rows = vec![["CODE", "MEANING"].map(str::to_owned)];
        rows.extend(ERROR_CODES.iter().map(|known| [known.code.to_string(), known.meaning.to_owned()]));
        return print(&table(&rows));
    };
    let known = explain(code).ok_or(Failure::UnknownCode { code })?;
    match arguments.output {
        Format::Json => print_json(known),
        Format::Text => {
            let rows =
                [["Code", &format!("{code}: {}", known.meaning)], ["When", known.when], ["Remedy", known.remedy]];
            print(&table(&rows.map(|row| row.map(str::to_owned))))
        }
    }
}
