//! `keelson version`.

use super::output::print;
use crate::error::Failure;

pub(super) fn run() -> Result<(), Failure> {
    print(concat!("keelson ", env!("CARGO_PKG_VERSION"), "\n"))
}
