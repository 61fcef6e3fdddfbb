//! Kernel switches under /proc/sys/net, of the network namespace that this thread is in.

use std::{fs, io};

use super::KernelError;

/// Makes the switch at `path` below /proc/sys/net hold `value`, writing only if it doesn't.
pub(crate) fn ensure(path: &str, value: &str) -> Result<(), KernelError> {
    let file = format!("/proc/sys/net/{path}");
    let failed = |doing: &str, error| KernelError::new(format!("{doing} {file}"), error);
    if fs::read_to_string(&file).map_err(|error| failed("read", error))?.trim_end() == value {
        return Ok(());
    }
    fs::write(&file, value).map_err(|error| failed("write", error))
}

/// [`ensure`], unless the kernel has no such switch: one of IPv6 where IPv6 is disabled.
pub(crate) fn ensure_if_present(path: &str, value: &str) -> Result<(), KernelError> {
    match ensure(path, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
