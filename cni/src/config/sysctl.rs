//! Kernel switches that a network sets in its containers, as the reference tuning plugin does.

use std::{fs, io, path::Path};

use keelson_host::Problem;
use serde_json::{Map, Value};

use super::{
    fields::{Fields, not_a},
    pattern::Pattern,
};

/// The file that says which switches networks may set. Without it they may set all below `net.`.
const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// Stands for the interface's name in a key.
const PLACEHOLDER: &str = "IFNAME";

/// No key of the kernel's is longer.
const LONGEST_KEY: usize = 256;

/// One switch and the value that it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    /// Below /proc/sys/net, with `IFNAME` where the interface's name belongs.
    path: String,
    pub(crate) value: String,
}

impl Switch {
    /// Its path below /proc/sys/net for the interface called `ifname`.
    pub(crate) fn path(&self, ifname: &str) -> String {
        self.path.replacen(PLACEHOLDER, ifname, 1)
    }
}

/// Reads `sysctl`; `args.cni.sysctl` adds to it and wins.
pub(super) fn parse(top: &Fields<'_>, args: Option<&Fields<'_>>) -> Result<Vec<Switch>, Problem> {
    let mut switches: Vec<(String, Switch)> = Vec::new();
    for fields in [Some(top), args].into_iter().flatten() {
        let Some(object) = fields.get("sysctl") else { continue };
        let path = fields.path_of("sysctl");
        let object = object.as_object().ok_or_else(|| not_a(&path, object, "an object"))?;
        for (key, switch) in read(&path, object)? {
            switches.retain(|(other, _)| *other != key);
            switches.push((key, switch));
        }
    }
    if !switches.is_empty() {
        check_allowed(switches.iter().map(|(key, _)| key.as_str()), Path::new(ALLOW_LIST))?;
    }
    Ok(switches.into_iter().map(|(_, switch)| switch).collect())
}

fn read(path: &str, object: &Map<String, Value>) -> Result<Vec<(String, Switch)>, Problem> {
    let switches = object.iter().map(|(key, value)| {
        let path = format!("{path}.{key}");
        let text = value.as_str().ok_or_else(|| not_a(&path, value, "a string"))?;
        if text.contains(['\0', '\n']) {
            return Err(Problem::new(path, text, "is not one line", "give the switch's value"));
        }
        match below_net(key) {
            Some(below) => Ok((key.clone(), Switch { path: below, value: text.to_owned() })),
            None => {
                let remedy = "name a switch as sysctl(8) does, such as net.ipv4.conf.IFNAME.arp_filter";
                Err(Problem::new(path, key, "is not a switch of the network", remedy))
            }
        }
    });
    switches.collect()
}

/// The path of a switch below /proc/sys/net: its parts are names, so that none leads anywhere else.
fn below_net(key: &str) -> Option<String> {
    let is_name = |part: &&str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-@".contains(&byte))
    };
    let mut parts = key.split(['.', '/']);
    let below: Vec<&str> = (key.len() <= LONGEST_KEY && parts.next() == Some("net")).then(|| parts.collect())?;
    (below.len() > 1 && below.iter().all(is_name)).then(|| below.join("/"))
}

fn check_allowed<'a>(keys: impl Iterator<Item = &'a str>, file: &Path) -> Result<(), Problem> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let wrong = format!("can't be read ({error})");
            return Err(Problem::new("sysctl", file.display(), wrong, "mend or remove the file"));
        }
    };
    let mut patterns = Vec::new();
    for (number, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
        let pattern = Pattern::parse(line).ok_or_else(|| {
            let path = format!("{}:{}", file.display(), number + 1);
            let remedy = "write it with literal characters, '.', '[a-z_]', '*', '+', '?', '\\.', '^' and '$'";
            Problem::new(path, line, "is a regular expression of a kind that isn't supported", remedy)
        })?;
        patterns.push(pattern);
    }
    for key in keys {
        if !patterns.iter().any(|pattern| pattern.matches(key)) {
            let remedy = format!("remove it, or have {} allow it", file.display());
            return Err(Problem::new("sysctl", key, "is not allowed on this node", remedy));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_all(top: &Value) -> Result<Vec<(String, String)>, String> {
        let object = top["sysctl"].as_object().unwrap();
        let switches = read("sysctl", object).map_err(|problem| problem.to_string())?;
        Ok(switches.into_iter().map(|(_, switch)| (switch.path("eth0.7"), switch.value)).collect())
    }

    #[test]
    fn switches_are_named_as_sysctl_names_them() {
        let found = read_all(&json!({"sysctl": {
            "net.ipv4.conf.IFNAME.arp_filter": "1",
            "net/core/somaxconn": "500",
        }}))
        .unwrap();
        let expected = [("core/somaxconn", "500"), ("ipv4/conf/eth0.7/arp_filter", "1")];
        let mut found: Vec<(&str, &str)> = found.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn nothing_outside_the_network_is_reached() {
        for key in [
            "kernel.hostname",
            "net",
            "net.",
            "net.ipv4",
            "net...kernel.x",
            "net/../kernel/x",
            "net.ipv4.",
            "/net/ipv4/x",
            "net/ipv4//x",
            "net.ipv4.a b",
            "net.ipv4.\u{e9}",
            "NET.ipv4.x",
        ] {
            let error = read_all(&json!({"sysctl": {key: "1"}})).unwrap_err();
            assert!(error.contains("is not a switch of the network"), "{error}");
        }
        assert!(read_all(&json!({"sysctl": {"net.ipv4.tcp_rmem": 1}})).is_err());
        assert!(read_all(&json!({"sysctl": {"net.ipv4.tcp_rmem": "1\n2"}})).is_err());
    }

    #[test]
    fn what_args_ask_for_wins() {
        let top = json!({"sysctl": {"net.ipv4.a": "1", "net.ipv4.b": "2"}});
        let args = json!({"sysctl": {"net.ipv4.b": "3"}});
        let found =
            parse(&Fields::top(top.as_object().unwrap()), Some(&Fields::below("args.cni", args.as_object().unwrap())));
        let values: Vec<String> = found.unwrap().into_iter().map(|switch| switch.value).collect();
        assert_eq!(values, ["1", "3"]);
    }

    #[test]
    fn the_nodes_list_decides() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("allowlist.conf");
        let check = |key: &str| check_allowed([key].into_iter(), &file).map_err(|problem| problem.to_string());
        assert_eq!(check("net.ipv4.anything"), Ok(()));
        fs::write(&file, "\n ^net.core.somaxconn$ \n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n").unwrap();
        assert_eq!(check("net.core.somaxconn"), Ok(()));
        assert_eq!(check("net.ipv4.conf.IFNAME.arp_filter"), Ok(()));
        assert!(check("net.ipv4.conf.eth0.arp_filter").unwrap_err().contains("is not allowed on this node"));
        fs::write(&file, "net.core.somaxconn\n(net)\n").unwrap();
        let error = check("net.core.somaxconn").unwrap_err();
        assert!(error.contains("allowlist.conf:2: \"(net)\" is a regular expression of a kind"), "{error}");
        fs::write(&file, "").unwrap();
        assert!(check("net.core.somaxconn").is_err(), "an empty list allows nothing");
        let error = check_allowed(["net.core.somaxconn"].into_iter(), directory.path()).unwrap_err().to_string();
        assert!(error.contains("can't be read"), "{error}");
    }
}
