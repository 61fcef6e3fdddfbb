//! What keeps the plugin from being ready.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

/// The reasons for not being ready, by what they are about. Ready is: no reason.
#[derive(Debug)]
pub(crate) struct Conditions {
    reasons: Mutex<BTreeMap<String, String>>,
    ready: watch::Sender<Result<(), String>>,
}

impl Conditions {
    /// Starts with these subjects and the same reason for each.
    pub(crate) fn new(
        ready: watch::Sender<Result<(), String>>,
        subjects: impl IntoIterator<Item = String>,
        reason: &str,
    ) -> Self {
        let reasons = subjects.into_iter().map(|subject| (subject, reason.to_owned())).collect();
        let conditions = Self { reasons: Mutex::new(reasons), ready };
        conditions.change(|_| ());
        conditions
    }

    /// `subject` is not as it should be, for this reason; logged if the reason is new.
    pub(crate) fn set(&self, subject: impl Into<String>, reason: impl Into<String>) {
        let (subject, reason) = (subject.into(), reason.into());
        self.change(|reasons| {
            if reasons.get(&subject) != Some(&reason) {
                tracing::warn!(%subject, %reason, "not ready");
                reasons.insert(subject, reason);
            }
        });
    }

    /// `subject` is as it should be.
    pub(crate) fn clear(&self, subject: &str) {
        self.change(|reasons| {
            if reasons.remove(subject).is_some() {
                tracing::info!(%subject, "ready");
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) {
        // A map is whole whatever panicked while it was locked.
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut reasons);
        let state = if reasons.is_empty() {
            Ok(())
        } else {
            Err(reasons.iter().map(|(subject, reason)| format!("{subject}: {reason}")).collect::<Vec<_>>().join("; "))
        };
        self.ready.send_if_modified(|ready| {
            let differs = *ready != state;
            *ready = state;
            differs
        });
    }
}
