//! Name servers.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// More than any resolver reads.
const LONGEST_RESOLV_CONF: u64 = 1 << 20;

/// Name servers as the spec has them; the runtime, not the plugin, puts them into the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the `dns` object of a config or a result.
pub(crate) fn parse_dns(dns: Option<Fields<'_>>) -> Result<Dns, Problem> {
    let Some(dns) = dns else { return Ok(Dns::default()) };
    Ok(Dns {
        nameservers: dns.strings("nameservers")?,
        domain: dns.string("domain")?.filter(|domain| !domain.is_empty()).map(str::to_owned),
        search: dns.strings("search")?,
        options: dns.strings("options")?,
    })
}

/// Reads what the runtime says of name servers (`runtimeConfig.dns`), whose keys have other names.
pub(crate) fn parse_runtime_dns(dns: &Fields<'_>) -> Result<Dns, Problem> {
    Ok(Dns {
        nameservers: dns.strings("servers")?,
        domain: None,
        search: dns.strings("searches")?,
        options: dns.strings("options")?,
    })
}

/// The text of a file that can be read to its end: a FIFO's or a device's may never come.
fn read_regular_file(path: &Path) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST_RESOLV_CONF).read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a resolv.conf(5); `path` is the key that names it.
pub(crate) fn read_resolv_conf(path: &str, file: &Path) -> Result<Dns, Problem> {
    let text = read_regular_file(file).map_err(|error| {
        Problem::new(path, file.display(), format!("can't be read ({error})"), "name a file in resolv.conf's format")
    })?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let values = words.map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.extend(values.take(1)),
            "domain" => dns.domain = values.take(1).next(),
            "search" => dns.search = values.collect(),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    Ok(dns)
}
