//! What tests know of the VM tier.

/// The environment variable with the directory of a disk that survives reboots and power cuts. It is there in the VM
/// tier's guests only, where the machine is the test's own.
pub const VM_DISK: &str = "KEELSON_VM_DISK";

/// The environment variable with the file of the lines that the test before printed for the host until it cut the power.
/// What they say was heard outside the guest.
pub const VM_HEARD: &str = "KEELSON_VM_HEARD";

/// What the lines start with that a test prints for the host until it cuts the power.
pub const VM_CALL: &str = "call: ";
