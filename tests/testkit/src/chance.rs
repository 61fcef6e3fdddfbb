//! Numbers by chance, which a test can have again.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

/// Numbers by chance (xorshift64), the same ones for the same seed.
#[derive(Clone, Debug)]
pub struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    /// The seed is printed; the environment's `KEELSON_SEED` repeats one.
    ///
    /// # Panics
    ///
    /// If `KEELSON_SEED` isn't a number.
    #[expect(clippy::new_without_default, reason = "a default is the same each time")]
    #[must_use]
    pub fn new() -> Self {
        let given = env::var("KEELSON_SEED").ok().map(|text| text.parse().expect("KEELSON_SEED is a number"));
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0));
        println!("KEELSON_SEED={seed}");
        Self::of(seed)
    }

    /// The numbers of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, state: seed | 1 }
    }

    /// What repeats these numbers.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// The next number below `end`.
    ///
    /// # Panics
    ///
    /// If `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("64 bits hold it");
        usize::try_from(self.number() % end).expect("it is below a usize")
    }
}
