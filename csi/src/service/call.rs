//! The call that something is done for: who asked, and whether they still wait.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::OwnedSemaphorePermit;

tokio::task_local! {
    static CALL: Arc<Call>;
}

/// One RPC that is worked on.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    /// Held by whoever works for the call, also when the client has gone.
    _slot: Option<OwnedSemaphorePermit>,
}

/// Who asked.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The request's number in the log, from 1 on since the start.
    pub(crate) request: u64,
    /// The client's process, if it can be seen from here.
    pub(crate) client: Option<i32>,
    waits: Arc<AtomicBool>,
}

impl Caller {
    /// The next request, of a process if that is known.
    pub(crate) fn next(client: Option<i32>) -> Self {
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let request = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        Self { request, client, waits: Arc::new(AtomicBool::new(true)) }
    }

    /// Whether the client still waits for an answer.
    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// The client has its answer, or has gone.
    pub(crate) fn leave(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }
}

impl Call {
    pub(crate) fn new(caller: Caller, slot: Option<OwnedSemaphorePermit>) -> Arc<Self> {
        Arc::new(Self { caller, _slot: slot })
    }

    /// Does `work` for the call.
    pub(crate) async fn scope<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        CALL.scope(self, work).await
    }

    /// Does `work` for the call on this thread; `None` is work of the driver's own.
    pub(crate) fn within<T>(call: Option<Arc<Self>>, work: impl FnOnce() -> T) -> T {
        match call {
            Some(call) => CALL.sync_scope(call, work),
            None => work(),
        }
    }

    /// The call that this thread works for now.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CALL.try_with(Arc::clone).ok()
    }
}
