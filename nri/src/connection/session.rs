//! One connection from its registration to its end.

use std::{convert::Infallible, io, time::Duration};

use keelson_proto::nri::v1alpha1::RegisterPluginRequest;
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until},
};
use tower::Service;

use super::{
    client::{CallError, Pending},
    mux::{self, Demultiplexer, OversizedFrame},
    server::{Call, Server},
    ttrpc::{Assembler, TooLong},
};
use crate::error::Failure;

const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// As whom the plugin registers.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) name: String,
    /// Two digits: the plugin's place among others.
    pub(crate) index: String,
    /// The version of NRI that the plugin was written for.
    pub(crate) nri_version: String,
    /// How long the runtime may take to answer. It includes Configure and Synchronize in some runtimes.
    pub(crate) timeout: Duration,
}

/// How a session ended. Each of them is a reason to connect again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("the runtime closed the connection")]
    Closed,
    #[error("failed to {action} the NRI socket")]
    Socket { action: &'static str, source: io::Error },
    #[error("the runtime broke NRI's protocol")]
    Frame(#[from] OversizedFrame),
    #[error("failed to register with the runtime")]
    Register(#[from] CallError),
    #[error("the runtime didn't answer the registration within {0:?}")]
    RegisterTimeout(Duration),
    #[error("failed to register with the runtime")]
    RegisterTooLong(#[from] TooLong),
}

/// Registers over `socket` and answers the runtime's calls with `service` until the connection ends, which it always
/// does with an error.
///
/// Dropping the future closes the connection.
pub(crate) async fn serve<T, S>(mut socket: T, registration: &Registration, service: S) -> SessionError
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Call, Response = Vec<u8>, Error = Failure>,
{
    match serve_socket(&mut socket, registration, service).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn serve_socket<T, S>(socket: &mut T, registration: &Registration, service: S) -> Result<Infallible, SessionError>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Call, Response = Vec<u8>, Error = Failure>,
{
    let mut server = Server::new(service);
    let mut frames = Demultiplexer::default();
    let (mut calls, mut responses) = (Assembler::default(), Assembler::default());
    let mut buffer = vec![0; 64 << 10];

    let request = RegisterPluginRequest {
        plugin_name: registration.name.clone(),
        plugin_idx: registration.index.clone(),
        nri_version: registration.nri_version.clone(),
    };
    let deadline = Instant::now() + registration.timeout;
    let (pending, message) =
        Pending::call(RUNTIME_SERVICE, "RegisterPlugin", request.encode_to_vec(), registration.timeout)?;
    write(socket, mux::RUNTIME, &message).await?;
    let mut pending = Some(pending);

    loop {
        let read = tokio::select! {
            read = socket.read(&mut buffer) => read,
            // The runtime may call Configure before it answers the registration, so both are waited for at once.
            () = sleep_until(deadline), if pending.is_some() => {
                return Err(SessionError::RegisterTimeout(registration.timeout));
            }
        };
        let length = read.map_err(|source| SessionError::Socket { action: "read from", source })?;
        if length == 0 {
            return Err(SessionError::Closed);
        }
        let mut input = &buffer[..length];
        while let Some((connection, mut payload)) = frames.next(&mut input)? {
            match connection {
                mux::PLUGIN => {
                    while let Some(message) = calls.next(&mut payload) {
                        let response = server.answer(message).await;
                        write(socket, mux::PLUGIN, &response).await?;
                    }
                }
                mux::RUNTIME => {
                    while let Some(message) = responses.next(&mut payload) {
                        if let Some(outcome) = pending.as_ref().and_then(|pending| pending.outcome(message)) {
                            outcome?;
                            pending = None;
                            tracing::info!(name = registration.name, index = registration.index, "registered");
                        }
                    }
                }
                // As the runtime's own multiplexer does.
                unknown => tracing::debug!(connection = unknown, "dropped a frame for an unknown connection"),
            }
        }
    }
}

async fn write<T: AsyncWrite + Unpin>(socket: &mut T, connection: u32, message: &[u8]) -> Result<(), SessionError> {
    let frames = mux::frames(connection, message);
    socket.write_all(&frames).await.map_err(|source| SessionError::Socket { action: "write to", source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::duplex;
    use tower::service_fn;

    use super::*;

    /// What a plugin says of a runtime that sends `bytes` and hangs up.
    fn hears(bytes: &[u8]) -> SessionError {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (plugin, mut peer) = duplex(1 << 20);
            let registration = Registration {
                name: "test".to_owned(),
                index: "10".to_owned(),
                nri_version: "v0".to_owned(),
                timeout: Duration::from_secs(3600),
            };
            peer.write_all(bytes).await.unwrap();
            peer.shutdown().await.unwrap();
            serve(plugin, &registration, service_fn(async |call: Call| Ok(call.payload))).await
        })
    }

    #[test]
    fn a_silent_runtime_is_left_after_the_timeout() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (plugin, _peer) = duplex(1 << 10);
            let registration = Registration {
                name: "test".to_owned(),
                index: "10".to_owned(),
                nri_version: "v0".to_owned(),
                timeout: Duration::from_millis(1),
            };
            let end = serve(plugin, &registration, service_fn(async |call: Call| Ok(call.payload))).await;
            assert_eq!(end.to_string(), "the runtime didn't answer the registration within 1ms");
        });
    }

    proptest! {
        #[test]
        fn whatever_a_runtime_sends_ends_the_session_and_nothing_else(
            bytes in prop::collection::vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..600),
        ) {
            prop_assert!(matches!(
                hears(&bytes),
                SessionError::Closed | SessionError::Frame(_) | SessionError::Register(_)
            ));
        }
    }
}
