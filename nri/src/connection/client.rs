//! The end that calls: one request at a time.

use std::time::Duration;

use keelson_proto::{
    google::rpc::Status,
    ttrpc::{Request, Response},
};
use prost::Message as _;

use super::ttrpc::{Message, REQUEST, RESPONSE, TooLong, encode};

/// A call that waits for its response.
#[derive(Debug)]
pub(crate) struct Pending {
    stream: u32,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the runtime refused it with code {code}: {message}")]
    Refused { code: i32, message: String },
    #[error("the runtime's response can't be decoded")]
    Decode(#[source] prost::DecodeError),
    #[error("the runtime's response has {0} bytes, more than ttrpc allows")]
    TooLong(u32),
}

impl Pending {
    /// The first call on a connection, with the bytes of its request.
    ///
    /// # Errors
    ///
    /// [`TooLong`]
    pub(crate) fn call(
        service: &str,
        method: &str,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<(Self, Vec<u8>), TooLong> {
        let stream = 1;
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        Ok((Self { stream }, encode(stream, REQUEST, &request.encode_to_vec())?))
    }

    /// The outcome, if `message` is this call's response; anything else on the connection is not for us.
    pub(crate) fn outcome(&self, message: Message) -> Option<Result<Vec<u8>, CallError>> {
        if message.kind != RESPONSE || message.stream != self.stream {
            return None;
        }
        Some(match message.data {
            Err(length) => Err(CallError::TooLong(length)),
            Ok(data) => match Response::decode(data.as_slice()) {
                Err(error) => Err(CallError::Decode(error)),
                Ok(Response { status: Some(Status { code, message, .. }), .. }) if code != 0 => {
                    Err(CallError::Refused { code, message })
                }
                Ok(response) => Ok(response.payload),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::nri::v1alpha1::RegisterPluginRequest;

    use super::*;
    use crate::connection::mux::{RUNTIME, frames};

    /// Computed from the protocol's description, byte by byte.
    #[test]
    fn the_registration_has_the_bytes_that_the_protocol_asks_for() {
        let request = RegisterPluginRequest {
            plugin_name: "numa".to_owned(),
            plugin_idx: "10".to_owned(),
            nri_version: "v0.12.2".to_owned(),
        };
        let service = "nri.pkg.api.v1alpha1.Runtime";
        let (_, message) =
            Pending::call(service, "RegisterPlugin", request.encode_to_vec(), Duration::from_secs(5)).unwrap();
        let expected = "0000000200000053000000490000000101000a1c6e72692e706b672e6170692e7631616c706861312e52756e74696d\
                        65120e5265676973746572506c7567696e1a130a046e756d61120231301a0776302e31322e322080e497d012";
        let hex: String = frames(RUNTIME, &message).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }

    fn response(stream: u32, kind: u8, response: &Response) -> Message {
        Message { stream, kind, data: Ok(response.encode_to_vec()) }
    }

    #[test]
    fn only_the_calls_own_response_is_its_outcome() {
        let pending = Pending { stream: 1 };
        let done = Response { status: None, payload: b"done".to_vec() };
        assert!(pending.outcome(response(3, RESPONSE, &done)).is_none());
        assert!(pending.outcome(response(1, REQUEST, &done)).is_none());
        assert_eq!(pending.outcome(response(1, RESPONSE, &done)).unwrap().unwrap(), b"done");
        let ok = Response { status: Some(Status::default()), ..done };
        assert_eq!(pending.outcome(response(1, RESPONSE, &ok)).unwrap().unwrap(), b"done");
        let status = Status { code: 2, message: "invalid plugin index".to_owned(), details: vec![] };
        let refused = Response { status: Some(status), payload: vec![] };
        let error = pending.outcome(response(1, RESPONSE, &refused)).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the runtime refused it with code 2: invalid plugin index");
    }
}
