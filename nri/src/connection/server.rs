//! The end that is called: requests in, responses out.

use std::time::Duration;

use keelson_proto::ttrpc::{Request, Response};
use prost::Message as _;
use tower::{Service, ServiceExt};

use super::ttrpc::{MOST_DATA_BYTES, Message, REQUEST, RESPONSE, encode};
use crate::error::Failure;

/// One unary call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The service's full name, such as `nri.pkg.api.v1alpha1.Plugin`.
    pub(crate) service: String,
    pub(crate) method: String,
    /// The encoded argument.
    pub(crate) payload: Vec<u8>,
    /// How long the caller waits from now on, if it said so.
    pub(crate) timeout: Option<Duration>,
}

/// Answers calls with `service`, one after the other: NRI has one event in flight at a time.
#[derive(Debug)]
pub(crate) struct Server<S> {
    service: S,
    last_stream: u32,
}

impl<S> Server<S>
where
    S: Service<Call, Response = Vec<u8>, Error = Failure>,
{
    pub(crate) fn new(service: S) -> Self {
        Self { service, last_stream: 0 }
    }

    /// The bytes of the response to `message`.
    pub(crate) async fn answer(&mut self, message: Message) -> Vec<u8> {
        let stream = message.stream;
        let outcome = match self.accept(message) {
            Ok(call) => match self.service.ready().await {
                Ok(service) => service.call(call).await,
                Err(failure) => Err(failure),
            },
            Err(failure) => Err(failure),
        };
        let outcome = outcome.and_then(|payload| {
            // The envelope takes a few bytes beside the payload.
            let response = Response { status: None, payload };
            let data = response.encode_to_vec();
            encode(stream, RESPONSE, &data).map_err(|_| Failure::TooLong { length: data.len(), most: MOST_DATA_BYTES })
        });
        outcome.unwrap_or_else(|failure| {
            let status = failure.status();
            tracing::warn!(stream, code = status.code, error = status.message, "refused a call of the runtime");
            let response = Response { status: Some(status), payload: Vec::new() };
            // Encoding fails only beyond 4 MiB, and a status's message has at most 1000 characters.
            encode(stream, RESPONSE, &response.encode_to_vec()).unwrap_or_default()
        })
    }

    fn accept(&mut self, message: Message) -> Result<Call, Failure> {
        let stream = message.stream;
        let wrong = |wrong| Err(Failure::Stream { stream, wrong });
        if message.kind != REQUEST {
            return wrong("only requests are answered here");
        }
        // PROTOCOL.md: "The client-initiated stream IDs are odd", and each is greater than the one before.
        if stream.is_multiple_of(2) {
            return wrong("a client's stream id is odd");
        }
        if stream <= self.last_stream {
            return wrong("a stream id is greater than the one before");
        }
        self.last_stream = stream;
        let data =
            message.data.map_err(|length| Failure::TooLong { length: length as usize, most: MOST_DATA_BYTES })?;
        let request =
            Request::decode(data.as_slice()).map_err(|source| Failure::Decode { what: "ttrpc.Request", source })?;
        let timeout = u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
        Ok(Call { service: request.service, method: request.method, payload: request.payload, timeout })
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::google::rpc::Status;
    use proptest::prelude::*;
    use tower::service_fn;

    use super::*;

    async fn echo(call: Call) -> Result<Vec<u8>, Failure> {
        match call.method.as_str() {
            "Echo" => Ok(call.payload),
            "Huge" => Ok(vec![0; MOST_DATA_BYTES]),
            _ => Err(Failure::Unimplemented { service: call.service, method: call.method }),
        }
    }

    fn request(stream: u32, method: &str) -> Message {
        let request = Request {
            service: "test".to_owned(),
            method: method.to_owned(),
            payload: b"hello".to_vec(),
            ..Request::default()
        };
        Message { stream, kind: REQUEST, data: Ok(request.encode_to_vec()) }
    }

    /// Answers the messages in their order; gives the code and the payload of each response.
    fn answers(messages: Vec<Message>) -> Vec<(i32, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut server = Server::new(service_fn(echo));
            let mut answers = Vec::new();
            for message in messages {
                let stream = message.stream;
                let bytes = server.answer(message).await;
                assert_eq!(bytes[4..10], [&stream.to_be_bytes()[..], &[RESPONSE, 0]].concat());
                let response = Response::decode(&bytes[10..]).unwrap();
                answers.push((response.status.map_or(0, |status: Status| status.code), response.payload));
            }
            answers
        })
    }

    #[test]
    fn calls_are_answered_and_what_is_unknown_is_unimplemented() {
        assert_eq!(answers(vec![request(1, "Echo"), request(3, "Ech")]), [(0, b"hello".to_vec()), (12, vec![])]);
    }

    #[test]
    fn a_stream_id_is_odd_and_used_once() {
        let messages = vec![request(5, "Echo"), request(5, "Echo"), request(3, "Echo"), request(8, "Echo")];
        let codes: Vec<i32> = answers(messages).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [0, 3, 3, 3]);
    }

    #[test]
    fn what_is_no_request_or_too_long_is_refused() {
        let response = Message { kind: RESPONSE, ..request(1, "Echo") };
        let garbage = Message { data: Ok(vec![0xff; 30]), ..request(3, "Echo") };
        let oversized = Message { data: Err(5 << 20), ..request(5, "Echo") };
        let messages = vec![response, garbage, oversized, request(7, "Huge"), request(9, "Echo")];
        let codes: Vec<i32> = answers(messages).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [3, 3, 8, 8, 0]);
    }

    proptest! {
        #[test]
        fn random_requests_get_an_answer(data in prop::collection::vec(any::<u8>(), 0..200), stream in any::<u32>()) {
            let message = Message { stream, kind: REQUEST, data: Ok(data) };
            prop_assert_eq!(answers(vec![message]).len(), 1);
        }
    }
}
