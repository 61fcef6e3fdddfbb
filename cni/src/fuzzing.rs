//! The parsers that meet the outside, each as a function of bytes that panics if a promise is broken. `tests/fuzz` calls
//! them; nothing else should.

#![allow(clippy::expect_used, reason = "a broken promise is a panic")]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use serde_json::Value;

use crate::{
    config::{
        invocation::{self, CniArgs, Invocation},
        names::{identifier_fault, interface_name_fault},
        network::{Attachment, ConfigError, NetworkConfig, stated_version},
        persona::Executable,
        result::{CniResult, unspeakable},
        version::SpecVersion,
    },
    error::Failure,
    kernel,
    store::{self, host_local::Holder},
};

/// A network config: read for every verb, in both personas.
pub fn network(text: &[u8]) {
    let _ = stated_version(text);
    for name in ["keelson-cni", "ptp"] {
        let executable = Executable::called(Some(name.as_ref()));
        let config = match NetworkConfig::parse(text, &executable) {
            Ok(config) => config,
            Err(error) => {
                assert_tellable(error);
                continue;
            }
        };
        assert_eq!(identifier_fault(&config.name), None);
        assert!(config.data_dir.is_absolute());
        let _ = config.valid_attachments().map_err(assert_tellable);
        let _ = config.prev_result().map_err(|error| assert_tellable(error.into()));
        let attachment = config.attachment(&CniArgs::default());
        // The runtime hands on what it has read and written again: that changes nothing.
        let document: Value = serde_json::from_slice(text).expect("what was parsed is JSON");
        let again = NetworkConfig::parse(document.to_string().as_bytes(), &executable)
            .and_then(|config| config.attachment(&CniArgs::default()));
        assert_eq!(format!("{attachment:?}"), format!("{again:?}"));
        match attachment {
            Ok(attachment) => check_attachment(&config, &attachment),
            Err(error) => assert_tellable(error),
        }
    }
}

/// What every attachment that was found to be right keeps to.
fn check_attachment(config: &NetworkConfig, attachment: &Attachment) {
    if let Some(bridge) = &attachment.bridge {
        assert_eq!(interface_name_fault(bridge), None);
    }
    for range in attachment.sets.iter().flat_map(|set| &set.0) {
        assert!(range.subnet.contains(&range.first) && range.subnet.contains(&range.last), "{range:?}");
        assert!(range.first <= range.last && range.subnet.contains(&range.gateway), "{range:?}");
        assert!(range.offers(range.start()) && range.size() > 0, "{range:?}");
    }
    for address in &attachment.requested {
        assert_eq!(attachment.sets.iter().filter(|set| set.range_of(*address).is_some()).count(), 1, "{address}");
    }
    // An address that a range offers can be asked for, unless others were.
    if let Some(range) = attachment.sets.first().and_then(|set| set.0.first())
        && attachment.requested.is_empty()
        && config.ipam_plugin.is_none()
    {
        let args = CniArgs { ip: Some(range.start().to_string()), ..CniArgs::default() };
        let asked = config.attachment(&args).map(|attachment| attachment.requested);
        assert_eq!(asked, Ok(vec![range.start()]));
    }
}

/// The code and the texts are the spec's, whatever the config holds.
fn assert_tellable(error: ConfigError) {
    let failure = Failure::from(error);
    assert!(matches!(failure.code(), 1 | 2 | 6 | 7), "{failure:?}");
    assert!(!failure.to_string().is_empty());
    assert!(!failure.one_line().contains('\n'), "{failure:?}");
    assert!(failure.to_json(SpecVersion::NEWEST).is_object());
}

/// The environment: a variable a line, as `NAME=VALUE`.
pub fn environment(bytes: &[u8]) {
    let variable = |name: &str| {
        let lines = bytes.split(|byte| *byte == b'\n');
        let value = lines.filter_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")).next()?;
        Some(OsStr::from_bytes(value).to_owned())
    };
    match invocation::read(variable) {
        Ok(Some(Invocation::Attachment(_, call))) => {
            assert_eq!(identifier_fault(&call.key.container_id), None);
            assert_eq!(interface_name_fault(&call.key.ifname), None);
            // What the runtime sets beside the spec's variables changes nothing.
            let again = invocation::read(|name| variable(name).filter(|_| name != "CNI_PATH"));
            assert_eq!(again.map(|call| call.is_some()), Ok(true));
        }
        Ok(Some(Invocation::Network(_))) => {}
        Ok(None) => assert!(variable("CNI_COMMAND").unwrap_or_default().is_empty()),
        Err(error) => {
            let failure = Failure::from(error);
            assert_eq!(failure.code(), 4);
            assert!(failure.to_json(SpecVersion::NEWEST).is_object());
        }
    }
}

/// A previous result, in whichever version it says: what is read, told and read again is the same.
pub fn result(text: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    for version in SpecVersion::ALL {
        let Ok(result) = CniResult::parse("prevResult", &value, version) else { continue };
        // Only the newest version has room for everything.
        let told = result.to_json(SpecVersion::NEWEST);
        assert_eq!(CniResult::parse("", &told, SpecVersion::NEWEST).as_ref(), Ok(&result), "{told}");
        for version in SpecVersion::ALL {
            let ipv4 = result.addresses.iter().filter(|address| address.address.addr().is_ipv4()).count();
            if unspeakable(version, ipv4, result.addresses.len() - ipv4).is_some() {
                continue;
            }
            let told = result.to_json(version);
            let again = CniResult::parse("", &told, version).map(|result| result.to_json(version));
            assert_eq!(again, Ok(told.clone()), "{told}");
        }
    }
}

/// A network's files in the store: a JSON object of their names and what they hold.
pub fn store(text: &[u8]) {
    store::fuzzing::check(text);
}

/// The content of a file in which host-local keeps who has an address.
pub fn host_local(content: &[u8]) {
    let holder = Holder::parse(content);
    assert!(!holder.describe().contains('\n'), "{holder:?}");
    let written = match &holder {
        Holder::Attachment(key) => {
            assert_eq!(interface_name_fault(&key.ifname), None);
            format!("{}\r\n{}", key.container_id, key.ifname)
        }
        Holder::Container(container_id) => container_id.clone(),
        Holder::Nobody | Holder::Unknown(_) => return,
    };
    assert_eq!(Holder::parse(written.as_bytes()), holder);
}

/// A datagram from the kernel.
pub fn netlink(datagram: &[u8]) {
    kernel::fuzzing::check(datagram);
}
