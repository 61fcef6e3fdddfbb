//! The SnapshotMetadata service: which blocks of a raw block volume have data, and which changed between two snapshots.
//!
//! The filesystem of the pool knows where each block of an image lies, and that is all that is asked: no data is read.
//! Two snapshots hold what they have for as long as they are there, so a block at the same place is the same block.

use std::{fs::File, io, ops::Range, path::PathBuf, time::Duration};

use keelson_host::{Problem, error_chain};
use keelson_proto::csi::v1::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse, snapshot_metadata_server::SnapshotMetadata,
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, OwnedPermit, Receiver, Sender},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Guard, Service, State,
    call::Call,
    origin::{Origin, OriginError, Wanted},
    request::required,
};
use crate::{
    kernel::extents::{data, extents, is_unsupported},
    policy::{ContentKind, Extent, VolumeId, allocated, changed, check_map},
    store::{Pool, StoreError, Unavailable},
};

/// How many ranges a message has at most: some 64 KiB.
const MOST_RANGES: usize = 4096;

/// How long a client may take for a message. A backup reads the blocks that it names before it takes the next: at most
/// some GiB.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why nothing is known about blocks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("{0}")]
    Invalid(Problem),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("snapshot {id} is of a volume with a filesystem; blocks are told of raw block volumes only")]
    NotBlock { id: String },
    #[error("snapshots {base} and {target} are of different volumes, {of} and {others}")]
    Unrelated { base: String, target: String, of: VolumeId, others: VolumeId },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error("the client took no message for {seconds} s; go on with starting_offset at what it has heard last")]
    Stalled { seconds: u64 },
    #[error("starting_offset {offset} is not within the volume's {bytes} bytes")]
    Offset { offset: i64, bytes: u64 },
}

impl From<Problem> for MetadataError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

/// Snapshots that are read: nobody deletes them while this is held.
#[derive(Debug)]
struct Reading {
    images: Vec<(PathBuf, File)>,
    /// Each snapshot, and the name of its pool.
    held: Vec<(Guard, String)>,
    /// The size of the volume at the later snapshot.
    bytes: u64,
    start: u64,
    most: usize,
}

type Messages<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl SnapshotMetadata for Service {
    type GetMetadataAllocatedStream = Messages<GetMetadataAllocatedResponse>;
    type GetMetadataDeltaStream = Messages<GetMetadataDeltaResponse>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let GetMetadataAllocatedRequest { snapshot_id, starting_offset, max_results, secrets } = request.into_inner();
        let id = snapshot_id.clone();
        let work = move |state: &State| {
            required("snapshot_id", &snapshot_id)?;
            check_map("secrets", &secrets)?;
            Reading::begin(state, &[snapshot_id], starting_offset, max_results, "GetMetadataAllocated")
        };
        let reading = self.answer("GetMetadataAllocated", &id, work).await?.into_inner();
        Ok(self.stream(reading, |bytes, block_metadata| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: bytes,
            block_metadata,
        }))
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let GetMetadataDeltaRequest { base_snapshot_id, target_snapshot_id, starting_offset, max_results, secrets } =
            request.into_inner();
        let id = target_snapshot_id.clone();
        let work = move |state: &State| {
            required("base_snapshot_id", &base_snapshot_id)?;
            required("target_snapshot_id", &target_snapshot_id)?;
            check_map("secrets", &secrets)?;
            let both = [base_snapshot_id, target_snapshot_id];
            Reading::begin(state, &both, starting_offset, max_results, "GetMetadataDelta")
        };
        let reading = self.answer("GetMetadataDelta", &id, work).await?.into_inner();
        Ok(self.stream(reading, |bytes, block_metadata| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes: bytes,
            block_metadata,
        }))
    }
}

impl Service {
    /// Sends message after message, as fast as the client takes them and for as long as it does.
    fn stream<T: Send + 'static>(
        &self,
        reading: Reading,
        message: impl Fn(i64, Vec<BlockMetadata>) -> T + Send + 'static,
    ) -> Response<Messages<T>> {
        let (outlet, receiver) = Outlet::new(PATIENCE);
        // It is worked on to its end: until then the call has its slot.
        let (service, call) = (self.clone(), Call::current());
        self.state().tasks.spawn_blocking(move || {
            Call::within(call, || {
                // Sizes were checked to fit when the volume was made.
                let bytes = i64::try_from(reading.bytes).unwrap_or(i64::MAX);
                let told = reading.read(service.state(), |ranges| outlet.send(message(bytes, ranges)));
                if let Err(error) = told {
                    tracing::warn!(error = error_chain(&error), "telling where a snapshot's blocks lie failed");
                    outlet.fail(error);
                }
            });
        });
        Response::new(ReceiverStream::new(receiver))
    }
}

/// Whether the client is there to hear more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    There,
    Gone,
}

/// Where messages go to a client, which may be slow, or never take the next.
struct Outlet<T> {
    sender: Sender<Result<T, Status>>,
    /// Room for the reason of an early end, which must never look like the end of the list.
    last: OwnedPermit<Result<T, Status>>,
    patience: Duration,
}

impl<T: Send + 'static> Outlet<T> {
    fn new(patience: Duration) -> (Self, Receiver<Result<T, Status>>) {
        let (sender, receiver) = mpsc::channel(2);
        #[expect(clippy::expect_used, reason = "the channel is new and empty")]
        let last = sender.clone().try_reserve_owned().expect("a new channel has room");
        (Self { sender, last, patience }, receiver)
    }

    /// Waits until there is room for the message.
    fn send(&self, message: T) -> Result<Listener, MetadataError> {
        match Handle::current().block_on(timeout(self.patience, self.sender.send(Ok(message)))) {
            Ok(Ok(())) => Ok(Listener::There),
            Ok(Err(_)) => Ok(Listener::Gone),
            Err(_) => Err(MetadataError::Stalled { seconds: self.patience.as_secs() }),
        }
    }

    fn fail(self, error: MetadataError) {
        self.last.send(Err(error.into()));
    }
}

impl Reading {
    /// Takes the snapshots `ids`, the last of which is the one that is told about.
    fn begin(
        state: &State,
        ids: &[String],
        starting_offset: i64,
        max_results: i32,
        operation: &'static str,
    ) -> Result<Self, MetadataError> {
        let most = match usize::try_from(max_results) {
            Ok(0) => MOST_RANGES,
            Ok(most) => most.min(MOST_RANGES),
            Err(_) => {
                return Err(Problem::new("max_results", max_results, "is negative", "use 0 for no limit").into());
            }
        };
        let (mut images, mut held) = (Vec::new(), Vec::new());
        let (mut bytes, mut of) = (0, None::<(String, VolumeId)>);
        for id in ids {
            let origin = Origin::take(state, &Wanted::Snapshot(id.clone()), operation)?;
            if origin.content.kind() != ContentKind::Block {
                return Err(MetadataError::NotBlock { id: id.clone() });
            }
            match of.replace((id.clone(), origin.volume.clone())) {
                Some((base, of)) if of != origin.volume => {
                    let (target, others) = (id.clone(), origin.volume.clone());
                    return Err(MetadataError::Unrelated { base, target, of, others });
                }
                _ => {}
            }
            bytes = origin.bytes;
            let file = File::open(&origin.path).map_err(StoreError::io("open", &origin.path))?;
            images.push((origin.path.clone(), file));
            held.push(origin.into_guard());
        }
        let offset = MetadataError::Offset { offset: starting_offset, bytes };
        let start = u64::try_from(starting_offset).ok().filter(|start| *start <= bytes).ok_or(offset)?;
        Ok(Self { images, held, bytes, start, most })
    }

    /// Tells `send` of range after range, in messages, until it says that nobody listens any more.
    fn read(
        &self,
        state: &State,
        send: impl FnMut(Vec<BlockMetadata>) -> Result<Listener, MetadataError>,
    ) -> Result<(), MetadataError> {
        let pool = self.held.last().and_then(|(_, pool)| state.pools.named(pool));
        let _turn = pool.map(Pool::enter).transpose()?;
        let range = self.start..self.bytes;
        let Some((path, target)) = self.images.last() else { return Ok(()) };
        let failed = StoreError::io("read where the blocks lie of", path);
        match self.images.as_slice() {
            [(_, base), (_, target)] => self.send(changed(places(base), places(target), range), failed, send),
            _ => self.send(allocated(places(target), range), failed, send),
        }
    }

    fn send(
        &self,
        ranges: impl Iterator<Item = io::Result<Range<u64>>>,
        failed: impl Fn(io::Error) -> StoreError,
        mut send: impl FnMut(Vec<BlockMetadata>) -> Result<Listener, MetadataError>,
    ) -> Result<(), MetadataError> {
        let mut message = Vec::new();
        let mut is_first = true;
        for range in ranges {
            if message.len() == self.most {
                is_first = false;
                if send(std::mem::take(&mut message))? == Listener::Gone {
                    return Ok(());
                }
            }
            message.push(block(&range.map_err(&failed)?));
        }
        // Also one without any range: it tells the volume's size.
        if is_first || !message.is_empty() {
            send(message)?;
        }
        Ok(())
    }
}

/// Where an image's blocks lie. A filesystem that doesn't tell (tmpfs) tells at least where there are holes.
fn places(image: &File) -> Box<dyn Iterator<Item = io::Result<Extent>> + '_> {
    let mut extents = extents(image, 0..u64::MAX).peekable();
    match extents.peek() {
        Some(Err(error)) if is_unsupported(error) => Box::new(data(image)),
        _ => Box::new(extents),
    }
}

fn block(range: &Range<u64>) -> BlockMetadata {
    let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
    BlockMetadata { byte_offset: number(range.start), size_bytes: number(range.end - range.start) }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_nothing_more_is_told_why_the_list_ends() {
        let (outlet, mut receiver) = Outlet::new(Duration::from_millis(20));
        let sending = tokio::task::spawn_blocking(move || {
            assert_eq!(outlet.send("first").unwrap(), Listener::There);
            let error = outlet.send("second").unwrap_err();
            outlet.fail(error);
        });
        sending.await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "first");
        assert_eq!(receiver.recv().await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_told_nothing() {
        let (outlet, receiver) = Outlet::new(Duration::from_secs(60));
        drop(receiver);
        let sending = tokio::task::spawn_blocking(move || outlet.send("first").unwrap());
        assert_eq!(sending.await.unwrap(), Listener::Gone);
    }
}
