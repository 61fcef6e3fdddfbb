//! The connection to the runtime: NRI's multiplexer and ttrpc, without any knowledge of containers.
//!
//! [`mux`] and [`ttrpc`] turn bytes into messages and back and do no I/O; [`server`] and [`client`] are the two ends of
//! unary calls; [`session`] drives all of it over one socket.

mod client;
mod mux;
mod server;
mod session;
mod ttrpc;

pub(crate) use server::Call;
pub(crate) use session::{Registration, serve};
