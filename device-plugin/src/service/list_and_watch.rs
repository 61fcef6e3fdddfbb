//! `ListAndWatch`.

use std::future;

use futures::{Stream, StreamExt};
use keelson_proto::deviceplugin::v1beta1 as api;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use super::Service;
use crate::metrics::ResourceLabels;

/// How many streams a registration has had, and how many are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) opened: u64,
    pub(crate) open: u64,
}

/// The complete list now, and again whenever it has changed, until the registration ends.
///
/// Only the newest list is kept for a kubelet that reads slowly, and none is sent that equals the last: the kubelet
/// rewrites its checkpoint for every one.
pub(super) fn lists(service: &Service) -> impl Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send + use<> {
    let open = OpenStream::new(service.streams.clone());
    let labels = ResourceLabels { resource: service.offer.name.to_string() };
    let sent = service.offer.metrics.lists.get_or_create_owned(&labels);
    let mut last = None;
    WatchStream::new(service.offer.listing.clone())
        .filter_map(move |listing| {
            let _open = &open;
            let message = listing.map(|listing| listing.message().clone());
            let news = message.filter(|message| last.as_ref() != Some(message));
            if let Some(message) = &news {
                last = Some(message.clone());
                sent.inc();
            }
            future::ready(news.map(Ok))
        })
        .take_until(service.stop.clone().cancelled_owned())
}

/// Counts a stream as open while it exists.
struct OpenStream(watch::Sender<Streams>);

impl OpenStream {
    fn new(streams: watch::Sender<Streams>) -> Self {
        streams.send_modify(|streams| {
            streams.opened += 1;
            streams.open += 1;
        });
        Self(streams)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|streams| streams.open -= 1);
    }
}
