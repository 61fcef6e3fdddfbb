//! How much memory each process of `keelson run` takes, with a real containerd to talk to.

use std::fs;

use anyhow::{Context, Result};
use keelson_nodelab::Lab;

use crate::{
    programs,
    report::{Amount, Report},
};

pub(crate) async fn measure() -> Result<Report> {
    let keelson = programs::keelson()?;
    let cni = programs::keelson_cni()?;
    // keelson looks for the CNI executable beside itself.
    let directory = tempfile::tempdir()?;
    for program in [&keelson, &cni] {
        let copy = directory.path().join(program.file_name().context("a program has a name")?);
        fs::copy(program, &copy).with_context(|| format!("failed to copy to {}", copy.display()))?;
    }
    let lab = Lab::start(directory.path(), &|step| eprintln!("{step}")).await?;
    let amounts = measure_processes(&lab)?;
    let left = lab.stop().await?;
    let mut notes = vec![
        "resident memory; pages that processes share are counted in each".to_owned(),
        "every plugin ready and idle: registered with a kubelet's stand-in, connected to containerd".to_owned(),
    ];
    notes.extend(left.into_iter().map(|leftover| format!("left behind: {leftover}")));
    Ok(Report { amounts, notes, ..Report::default() })
}

fn measure_processes(lab: &Lab) -> Result<Vec<Amount>> {
    let (mut amounts, mut together) = (Vec::new(), 0);
    for (name, pid) in lab.processes()? {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
        let bytes =
            |key| kibibytes(&text, key).map(|value| value * 1024).with_context(|| format!("{path} has no {key}"));
        amounts.push(Amount { what: name.to_owned(), bytes: bytes("Rss")? });
        together += bytes("Pss")?;
    }
    amounts.push(Amount { what: "together, shared pages counted once".to_owned(), bytes: together });
    Ok(amounts)
}

/// The value of a line such as `Rss:               10324 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_matched_whole() {
        let text =
            "00400000-7fff [rollup]\nRss:               10324 kB\nPss:                8111 kB\nPss_Dirty:  12 kB\n";
        assert_eq!((kibibytes(text, "Rss"), kibibytes(text, "Pss")), (Some(10324), Some(8111)));
        assert_eq!(kibibytes(text, "Swap"), None);
    }
}
