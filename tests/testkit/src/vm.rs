//! What tests know of the VM tier.

/// The environment variable with the directory of a disk that survives reboots and power cuts. It is there in the VM
/// tier's guests only, where the machine is the test's own.
pub const VM_DISK: &str = "KEELSON_VM_DISK";
