//! Kernel switches under /proc/sys/net, of the network namespace that this thread is in.

use std::{fs, io};

use super::KernelError;

/// The switch of IPv4 that makes the namespace a router.
pub(crate) const FORWARD_V4: &str = "ipv4/ip_forward";

/// The same of IPv6.
pub(crate) const FORWARD_V6: &str = "ipv6/conf/all/forwarding";

/// What the switch at `path` below /proc/sys/net holds.
pub(crate) fn read(path: &str) -> Result<String, KernelError> {
    let file = format!("/proc/sys/net/{path}");
    let text = fs::read_to_string(&file).map_err(|error| KernelError::new(format!("read {file}"), error))?;
    Ok(text.trim_end().to_owned())
}

/// Makes the switch at `path` below /proc/sys/net hold `value`, writing only if it doesn't.
pub(crate) fn ensure(path: &str, value: &str) -> Result<(), KernelError> {
    if read(path)? == value {
        return Ok(());
    }
    let file = format!("/proc/sys/net/{path}");
    fs::write(&file, value).map_err(|error| KernelError::new(format!("write {file}"), error))
}

/// [`ensure`], unless the kernel has no such switch: one of IPv6 where IPv6 is disabled.
pub(crate) fn ensure_if_present(path: &str, value: &str) -> Result<(), KernelError> {
    match ensure(path, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
