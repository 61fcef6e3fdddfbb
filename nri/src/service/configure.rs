//! Configure: the runtime introduces itself and asks which events the plugin wants.

use keelson_proto::nri::v1alpha1::{ConfigureRequest, ConfigureResponse, Event};

use super::Events;
use crate::error::Failure;

/// The events subscribed to: each one costs the start of every Pod a round trip. All of them are known to NRI 0.3 and
/// later; an event that the runtime doesn't know would make it refuse the plugin.
const EVENTS: [Event; 5] = [
    Event::RemovePodSandbox,
    Event::CreateContainer,
    Event::UpdateContainer,
    Event::StopContainer,
    Event::RemoveContainer,
];

impl Events {
    pub(super) fn configure(&mut self, request: &ConfigureRequest) -> Result<ConfigureResponse, Failure> {
        tracing::info!(
            runtime = request.runtime_name,
            version = request.runtime_version,
            nri = request.nri_version,
            request_timeout_ms = request.request_timeout,
            "configured by the runtime"
        );
        Ok(ConfigureResponse { events: mask(&EVENTS), ..ConfigureResponse::default() })
    }
}

/// Bit `event - 1` for each event.
fn mask(events: &[Event]) -> i32 {
    events.iter().fold(0, |mask, event| mask | 1 << (*event as i32 - 1))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_mask_counts_events_from_bit_zero() {
        assert_eq!(mask(&EVENTS), 0x68c);
        // The example of NRI's documentation of the wire: events 1, 2, 3, 4, 7, 8, 10 and 11.
        let all = [1, 2, 3, 4, 7, 8, 10, 11].map(|event| Event::try_from(event).unwrap());
        assert_eq!(mask(&all), 0x6cf);
        let response = ConfigureResponse { events: 0x6cf, ..ConfigureResponse::default() };
        assert_eq!(response.encode_to_vec(), [0x10, 0xcf, 0x0d]);
    }
}
