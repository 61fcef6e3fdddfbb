//! Which branches an input went through: the counters of LLVM's SanitizerCoverage.
//!
//! `cargo xtask test fuzz` compiles everything with `-C passes=sancov-module` and inline counters. Each crate's counters
//! are announced before `main`. Built without, there are none, and the fuzzer goes by chance alone.

#![expect(unsafe_code, reason = "the compiler's counters are announced by address")]

use std::{slice, sync::Mutex};

/// Where each crate's counters begin, and how many they are.
static COUNTERS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by the code that the compiler puts in front of `main`, once for each crate.
// SAFETY: the name is SanitizerCoverage's own; nothing else defines it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let length = end.addr() - start.addr();
    if let Ok(mut counters) = COUNTERS.lock() {
        counters.push((start.expose_provenance(), length));
    }
}

/// What was seen of every branch so far: one bit for each order of magnitude of how often one run took it.
#[derive(Debug)]
pub(crate) struct Coverage {
    seen: Vec<u8>,
}

impl Coverage {
    pub(crate) fn new() -> Self {
        Self { seen: vec![0; counters().map(|counters| counters.len()).sum()] }
    }

    /// How many branches the program has; none if it was compiled without counters.
    pub(crate) fn branches(&self) -> usize {
        self.seen.len()
    }

    /// How many of them were taken.
    pub(crate) fn taken(&self) -> usize {
        self.seen.iter().filter(|seen| **seen != 0).count()
    }

    /// Forgets what ran since the last time.
    pub(crate) fn reset(&self) {
        counters().for_each(|counters| counters.fill(0));
    }

    /// Adds what ran since [`Coverage::reset`]; tells whether any of it is new.
    pub(crate) fn add(&mut self) -> bool {
        let mut is_new = false;
        let mut seen = self.seen.as_mut_slice();
        for counters in counters() {
            let (these, rest) = seen.split_at_mut(counters.len());
            seen = rest;
            for (counter, seen) in counters.iter().zip(these).filter(|(counter, _)| **counter != 0) {
                let magnitude = 1 << counter.ilog2();
                is_new |= *seen & magnitude == 0;
                *seen |= magnitude;
            }
        }
        is_new
    }
}

fn counters() -> impl Iterator<Item = &'static mut [u8]> {
    let announced = COUNTERS.lock().map(|counters| counters.clone()).unwrap_or_default();
    announced.into_iter().map(|(start, length)| {
        // SAFETY: the compiler announced these bytes, which are static. Its code writes them without synchronisation, and
        // the only other thread sleeps, but for a moment every half minute: a count may be lost then, which is no harm.
        unsafe { slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(start), length) }
    })
}
