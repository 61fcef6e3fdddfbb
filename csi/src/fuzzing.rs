//! What meets the outside, each as a function of bytes that panics if a promise is broken. `tests/fuzz` calls them;
//! nothing else should.

use tonic::service::Routes;

use crate::{Driver, kernel, service, store};

/// A record of a pool or of the state directory, of whichever kind.
pub fn record(text: &[u8]) {
    store::fuzzing::check_record(text);
}

/// What lies in a pool: a JSON object of paths and what the files hold.
pub fn pool(text: &[u8]) {
    store::fuzzing::check_pool(text);
}

/// A message of a request: a byte that says which, and the message as it is on the wire.
pub fn request(bytes: &[u8]) {
    service::fuzzing::check(bytes);
}

/// What the kernel, a disk or the driver's own helper process says: a byte that says what, and the text.
pub fn kernel(bytes: &[u8]) {
    kernel::fuzzing::check(bytes);
}

/// The calls of a driver, without a socket.
#[must_use]
pub fn routes(driver: Driver) -> Routes {
    driver.into_routes()
}
