//! The environment that a runtime calls the plugin with.

use std::{ffi::OsString, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::names::{identifier_fault, interface_name_fault};

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl fmt::Display for Command {
    /// As the runtime spells it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// One call: `CNI_COMMAND` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// ADD, DEL and CHECK are about one attachment.
    Attachment(Command, AttachmentCall),
    /// GC, STATUS and VERSION are about the network or the plugin.
    Network(Command),
}

/// The attachment that a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttachmentCall {
    pub(crate) key: AttachmentKey,
    /// `None` only for DEL: the namespace may be gone.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) args: CniArgs,
}

/// What the spec calls an attachment: one interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AttachmentKey {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// The Pod that an attachment belongs to, as Kubernetes runtimes tell it; empty where they don't.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    /// The Pod's namespace.
    pub(crate) namespace: String,
    /// The Pod's name.
    pub(crate) name: String,
    /// The Pod's UID.
    pub(crate) uid: String,
}

/// What `CNI_ARGS` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CniArgs {
    pub(crate) pod: Pod,
    /// Addresses asked for, as written.
    pub(crate) ip: Option<String>,
    /// The Ethernet address asked for, as written.
    pub(crate) mac: Option<String>,
}

/// What is wrong with the environment; the message names the variables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("required env variables [{}] missing", .0.join(", "))]
    Missing(Vec<&'static str>),
    #[error("{variable}: {value:?} {wrong}")]
    Invalid { variable: &'static str, value: String, wrong: String },
}

/// Reads the environment through `variable`; `None` if `CNI_COMMAND` is absent or empty: nobody's runtime called.
pub(crate) fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Invocation>, EnvironmentError> {
    let text = |name: &'static str| match variable(name).map(OsString::into_string) {
        None => Ok(String::new()),
        Some(Ok(text)) => Ok(text),
        Some(Err(raw)) => Err(EnvironmentError::Invalid {
            variable: name,
            value: raw.to_string_lossy().into_owned(),
            wrong: "is not UTF-8".to_owned(),
        }),
    };
    let command = match text("CNI_COMMAND")?.as_str() {
        "" => return Ok(None),
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => return Ok(Some(Invocation::Network(Command::Gc))),
        "STATUS" => return Ok(Some(Invocation::Network(Command::Status))),
        "VERSION" => return Ok(Some(Invocation::Network(Command::Version))),
        other => {
            let wrong = "is not ADD, DEL, CHECK, GC, STATUS or VERSION".to_owned();
            return Err(EnvironmentError::Invalid { variable: "CNI_COMMAND", value: other.to_owned(), wrong });
        }
    };
    let (container_id, ifname, netns) = (text("CNI_CONTAINERID")?, text("CNI_IFNAME")?, text("CNI_NETNS")?);
    let mut missing = Vec::new();
    for (name, value, needed) in [
        ("CNI_CONTAINERID", &container_id, true),
        ("CNI_NETNS", &netns, command != Command::Del),
        ("CNI_IFNAME", &ifname, true),
    ] {
        if value.is_empty() && needed {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        return Err(EnvironmentError::Missing(missing));
    }
    if let Some(wrong) = identifier_fault(&container_id) {
        return Err(EnvironmentError::Invalid { variable: "CNI_CONTAINERID", value: container_id, wrong });
    }
    if let Some(wrong) = interface_name_fault(&ifname) {
        return Err(EnvironmentError::Invalid { variable: "CNI_IFNAME", value: ifname, wrong });
    }
    let args = parse_args(&text("CNI_ARGS")?)?;
    let netns = (!netns.is_empty()).then(|| PathBuf::from(netns));
    let key = AttachmentKey { container_id, ifname };
    Ok(Some(Invocation::Attachment(command, AttachmentCall { key, netns, args })))
}

/// Parses `K=V;K=V`. As in libcni, an unknown key is an error unless `IgnoreUnknown` is set.
fn parse_args(text: &str) -> Result<CniArgs, EnvironmentError> {
    let invalid = |value: &str, wrong: &str| {
        Err(EnvironmentError::Invalid { variable: "CNI_ARGS", value: value.to_owned(), wrong: wrong.to_owned() })
    };
    let mut args = CniArgs::default();
    let mut ignore_unknown = false;
    let mut unknown = None;
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return invalid(pair, "is not of the form KEY=VALUE");
        };
        let value = value.to_owned();
        match key {
            // strconv.ParseBool's words, and what libcni's own UnmarshallableBool takes.
            "IgnoreUnknown" => match value.to_ascii_lowercase().as_str() {
                "1" | "true" => ignore_unknown = true,
                "0" | "false" => ignore_unknown = false,
                _ => return invalid(pair, "is not 1, true, 0 or false"),
            },
            "K8S_POD_NAMESPACE" => args.pod.namespace = value,
            "K8S_POD_NAME" => args.pod.name = value,
            "K8S_POD_UID" => args.pod.uid = value,
            // The sandbox's id again.
            "K8S_POD_INFRA_CONTAINER_ID" => {}
            "IP" => args.ip = Some(value).filter(|value| !value.is_empty()),
            "MAC" => args.mac = Some(value).filter(|value| !value.is_empty()),
            _ => unknown = unknown.or(Some(pair)),
        }
    }
    match unknown {
        Some(pair) if !ignore_unknown => invalid(pair, "has an unknown key, and IgnoreUnknown is not set"),
        _ => Ok(args),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(pairs: &[(&str, &str)]) -> Result<Option<Invocation>, EnvironmentError> {
        read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn nobody_called() {
        assert_eq!(call(&[]), Ok(None));
        assert_eq!(call(&[("CNI_COMMAND", "")]), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named_at_once() {
        let missing = call(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "eth0")]).unwrap_err();
        assert_eq!(missing.to_string(), "required env variables [CNI_CONTAINERID, CNI_NETNS] missing");
        let del = call(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).unwrap();
        assert!(matches!(del, Some(Invocation::Attachment(Command::Del, AttachmentCall { netns: None, .. }))));
    }

    #[test]
    fn what_is_bad_is_named_with_its_value() {
        let good = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];
        assert!(call(&good).is_ok());
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../../etc"),
            ("CNI_IFNAME", "eth0/../x"),
            ("CNI_IFNAME", "an-interface-too-long"),
            ("CNI_ARGS", "IP"),
            ("CNI_ARGS", "FOO=bar"),
            ("CNI_ARGS", "IgnoreUnknown=maybe"),
        ] {
            let mut pairs = vec![(name, value)];
            pairs.extend(good);
            let error = call(&pairs).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn args_of_kubernetes_runtimes_are_taken_apart() {
        let text =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u;FOO=a=b";
        let args = parse_args(text).unwrap();
        assert_eq!(args.pod, Pod { namespace: "ns".to_owned(), name: "p".to_owned(), uid: "u".to_owned() });
        assert_eq!(parse_args("").unwrap(), CniArgs::default());
    }

    #[test]
    fn each_key_of_args_is_known() {
        let args = parse_args("IP=10.0.0.2;MAC=02:00:00:00:00:01;K8S_POD_INFRA_CONTAINER_ID=x").unwrap();
        assert_eq!((args.ip.as_deref(), args.mac.as_deref()), (Some("10.0.0.2"), Some("02:00:00:00:00:01")));
        assert_eq!(parse_args("IP=;MAC=;IgnoreUnknown=0;IgnoreUnknown=False").unwrap(), CniArgs::default());
        assert!(parse_args("IgnoreUnknown=true;IgnoreUnknown=false;FOO=bar").is_err());
    }

    #[test]
    fn commands_are_spelled_as_they_are_read() {
        let belongings = [("CNI_CONTAINERID", "a"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")];
        for text in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
            let pairs = [&belongings[..], &[("CNI_COMMAND", text)]].concat();
            let (Some(Invocation::Attachment(command, _)) | Some(Invocation::Network(command))) = call(&pairs).unwrap()
            else {
                panic!("{text} is no command");
            };
            assert_eq!(command.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn no_args_panic(text in "\\PC*") {
            let _ = parse_args(&text);
        }
    }
}
