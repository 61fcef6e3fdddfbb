//! The SnapshotMetadata service: which blocks of a raw block volume have data, and which changed between two snapshots.
//!
//! The filesystem of the pool knows where each block of an image lies, and that is all that is asked: no data is read.
//! Two snapshots hold what they have for as long as they are there, so a block at the same place is the same block.

use std::{fs::File, io, ops::Range, path::PathBuf};

use keelson_host::{Problem, error_chain};
use keelson_proto::csi::v1::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse, snapshot_metadata_server::SnapshotMetadata,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    Guard, Service, State,
    origin::{Origin, OriginError, Wanted},
    request::required,
};
use crate::{
    kernel::extents::{data, extents, is_unsupported},
    policy::{ContentKind, Extent, VolumeId, allocated, changed, check_map},
    store::StoreError,
};

/// How many ranges a message has at most: some 64 KiB.
const MOST_RANGES: usize = 4096;

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
    _guards: Vec<Guard>,
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
    /// Sends message after message, as fast as the client takes them and for as long as it is there.
    fn stream<T: Send + 'static>(
        &self,
        reading: Reading,
        message: impl Fn(i64, Vec<BlockMetadata>) -> T + Send + 'static,
    ) -> Response<Messages<T>> {
        let (sender, receiver) = mpsc::channel(1);
        self.state().tasks.spawn_blocking(move || {
            // Sizes were checked to fit when the volume was made.
            let bytes = i64::try_from(reading.bytes).unwrap_or(i64::MAX);
            let send = |ranges| sender.blocking_send(Ok(message(bytes, ranges))).is_ok();
            if let Err(error) = reading.read(send) {
                tracing::warn!(error = error_chain(&error), "reading where a snapshot's blocks lie failed");
                let _ = sender.blocking_send(Err(MetadataError::from(error).into()));
            }
        });
        Response::new(ReceiverStream::new(receiver))
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
        let (mut images, mut guards) = (Vec::new(), Vec::new());
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
            guards.push(origin.into_guard());
        }
        let offset = MetadataError::Offset { offset: starting_offset, bytes };
        let start = u64::try_from(starting_offset).ok().filter(|start| *start <= bytes).ok_or(offset)?;
        Ok(Self { images, _guards: guards, bytes, start, most })
    }

    /// Tells `send` of range after range, in messages, until it says that nobody listens any more.
    fn read(&self, send: impl FnMut(Vec<BlockMetadata>) -> bool) -> Result<(), StoreError> {
        let range = self.start..self.bytes;
        let Some((path, target)) = self.images.last() else { return Ok(()) };
        let told = match self.images.as_slice() {
            [(_, base), (_, target)] => self.send(changed(places(base), places(target), range), send),
            _ => self.send(allocated(places(target), range), send),
        };
        told.map_err(StoreError::io("read where the blocks lie of", path))
    }

    fn send(
        &self,
        ranges: impl Iterator<Item = io::Result<Range<u64>>>,
        mut send: impl FnMut(Vec<BlockMetadata>) -> bool,
    ) -> io::Result<()> {
        let mut message = Vec::new();
        let mut is_first = true;
        for range in ranges {
            if message.len() == self.most {
                is_first = false;
                if !send(std::mem::take(&mut message)) {
                    return Ok(());
                }
            }
            message.push(block(&range?));
        }
        // Also one without any range: it tells the volume's size.
        if is_first || !message.is_empty() {
            send(message);
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
