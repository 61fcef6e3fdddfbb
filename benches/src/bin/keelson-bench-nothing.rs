//! The floor under every measurement of a program's run: a program that does nothing.
//!
//! The benches build it as `keelson-cni` is built (static, the `cni` profile), so that what is above it is the work.

fn main() {}
