//! The loop: change an input, run it, keep it if it went where none went before.

use std::{
    cell::RefCell,
    panic::{self, AssertUnwindSafe},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    coverage::Coverage,
    mutate::{Dictionary, Random, mutate},
};

/// No parser of ours needs longer inputs to be seen through.
const LONGEST: usize = 16 * 1024;

/// An input that takes this long has been seen to hang.
const HANG: Duration = Duration::from_secs(30);

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) runs: u64,
    pub(crate) corpus: usize,
    pub(crate) taken: usize,
    pub(crate) branches: usize,
}

/// An input that broke a promise.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) input: Vec<u8>,
    pub(crate) message: String,
}

/// Runs `target` on `input`; the message of its panic, if it panicked.
pub(crate) fn run_once(target: fn(&[u8]), input: &[u8]) -> Result<(), String> {
    thread_local! {
        static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    }
    panic::set_hook(Box::new(|info| MESSAGE.set(info.to_string())));
    panic::catch_unwind(AssertUnwindSafe(|| target(input))).map_err(|_| MESSAGE.take())
}

/// Fuzzes `target` for `duration`, from `seeds` on.
///
/// # Errors
///
/// The first input that broke a promise, made as small as it could be.
pub(crate) fn fuzz(target: fn(&[u8]), seeds: &[Vec<u8>], duration: Duration, seed: u64) -> Result<Summary, Failure> {
    let dictionary = Dictionary::of(seeds);
    let mut random = Random(seed);
    let mut coverage = Coverage::new();
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut runs = 0;
    let watch = Watch::start();
    let run = |input: &[u8], coverage: &mut Coverage| {
        watch.begin(input);
        coverage.reset();
        let outcome = run_once(target, input);
        let is_new = coverage.add();
        outcome.map(|()| is_new)
    };
    for seed in seeds {
        run(seed, &mut coverage).map_err(|message| Failure { input: seed.clone(), message })?;
        corpus.push(seed.clone());
    }
    let end = Instant::now() + duration;
    while Instant::now() < end {
        // The latest finds lead on further than the first.
        let newest = corpus.len() - random.below(corpus.len().min(16)).min(corpus.len());
        let parent = if random.below(2) == 0 { corpus.get(newest.saturating_sub(1)) } else { random.pick(&corpus) };
        let other = random.pick(&corpus);
        let input =
            mutate(parent.map_or(&[], Vec::as_slice), other.map_or(&[], Vec::as_slice), &dictionary, &mut random);
        if input.len() > LONGEST {
            continue;
        }
        runs += 1;
        match run(&input, &mut coverage) {
            Ok(true) => corpus.push(input),
            Ok(false) => {}
            Err(message) => return Err(shrink(target, Failure { input, message })),
        }
    }
    Ok(Summary { runs, corpus: corpus.len(), taken: coverage.taken(), branches: coverage.branches() })
}

/// Takes away from a failing input what it fails without, too.
fn shrink(target: fn(&[u8]), mut failure: Failure) -> Failure {
    let mut length = failure.input.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at < failure.input.len() {
            let mut shorter = failure.input.clone();
            shorter.drain(at..(at + length).min(shorter.len()));
            match run_once(target, &shorter) {
                Err(message) => failure = Failure { input: shorter, message },
                Ok(()) => at += length,
            }
        }
        length /= 2;
    }
    failure
}

/// Ends the program when one input takes for ever, and says which.
struct Watch {
    begun: Arc<AtomicU64>,
    input: Arc<Mutex<Vec<u8>>>,
}

impl Watch {
    fn start() -> Self {
        let watch = Self { begun: Arc::default(), input: Arc::default() };
        let (begun, input) = (Arc::clone(&watch.begun), Arc::clone(&watch.input));
        thread::spawn(move || {
            let mut before = 0;
            loop {
                thread::sleep(HANG);
                let now = begun.load(Ordering::Relaxed);
                if now == before && Arc::strong_count(&begun) > 1 {
                    let input = input.lock().map(|input| input.escape_ascii().to_string()).unwrap_or_default();
                    eprintln!("hangs: \"{input}\"");
                    process::exit(1);
                }
                before = now;
            }
        });
        watch
    }

    fn begin(&self, input: &[u8]) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut slot) = self.input.lock() {
            input.clone_into(&mut slot);
        }
    }
}
