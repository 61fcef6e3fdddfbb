//! How large the stripped release binaries are.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    programs,
    report::{Amount, Report},
};

pub(crate) fn measure() -> Result<Report> {
    let amounts = vec![
        amount("keelson-cni (static)", &programs::keelson_cni()?)?,
        amount("keelson", &programs::keelson()?)?,
        amount("a static program that does nothing", &programs::nothing()?)?,
    ];
    Ok(Report { amounts, ..Report::default() })
}

fn amount(what: &str, path: &Path) -> Result<Amount> {
    let metadata = fs::metadata(path).with_context(|| format!("failed to look at {}", path.display()))?;
    Ok(Amount { what: what.to_owned(), bytes: metadata.len() })
}
