//! CreateVolume, one at a time and many at once.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use keelson_proto::csi::v1::ProbeRequest;
use tokio::task::JoinSet;

use super::{
    Bench,
    subject::{Outcome, Subject, Use, need, timed},
};
use crate::report::{Comparison, Figure, Limit, Samples};

/// How many are made at once.
const AT_ONCE: u8 = 16;

const FLOOR: &str = "write + fsync, rename + fsync (floor)";
const PROBE: &str = "Probe of ours, a call that does nothing (floor)";

pub(super) async fn measure(bench: &Bench, samples: usize) -> Result<Vec<Comparison>> {
    let floor = Floor::new(bench.place.path())?;
    Ok(vec![one(bench, &floor, samples).await?, burst(bench, &floor, samples.div_ceil(4)).await?])
}

fn subjects(bench: &Bench) -> [(&Subject, Use); 3] {
    [(&bench.ours, Use::Ext4), (&bench.ours, Use::Block), (&bench.theirs, Use::Block)]
}

fn title((subject, used): (&Subject, Use)) -> String {
    let kind = match used {
        Use::Ext4 => "ext4",
        Use::Block => "block",
    };
    format!("{}, {kind}", subject.name)
}

async fn one(bench: &Bench, floor: &Floor, samples: usize) -> Result<Comparison> {
    eprintln!("{}", bench.heading("CreateVolume"));
    let subjects = subjects(bench);
    let mut taken: [Samples; 5] = Default::default();
    // The first rounds warm the caches: they aren't counted.
    for round in 0..samples + 2 {
        for turn in 0..taken.len() {
            let turn = (round + turn) % taken.len();
            bench.place.settle()?;
            let outcome = match subjects.get(turn) {
                Some((subject, used)) => {
                    let name = format!("create-{round}-{turn}");
                    let (time, created) = timed(subject.create(&name, *used)).await;
                    if let Ok(id) = &created {
                        need(subject.delete(id).await, subject)?;
                    }
                    created.map(|_| time)
                }
                None if turn == 3 => Ok(floor.once()?),
                None => probe(&bench.ours).await,
            };
            if round > 1 {
                taken[turn].add(outcome);
            }
        }
    }
    let titles = [title(subjects[0]), title(subjects[1]), title(subjects[2]), FLOOR.to_owned(), PROBE.to_owned()];
    let theirs = titles[2].clone();
    let timings = taken.into_iter().zip(&titles).map(|(samples, title)| samples.timing(title)).collect();
    Ok(Comparison::new(bench.heading("CreateVolume of 1 GiB"), timings)
        .times_as_fast(&theirs, 20.0)
        .times_as_fast_at_p99(&theirs, 20.0)
        .ratio(&titles[0], FLOOR, None)
        .ratio(&titles[1], FLOOR, None))
}

async fn burst(bench: &Bench, floor: &Floor, samples: usize) -> Result<Comparison> {
    eprintln!("{}", bench.heading("CreateVolume, 16 at once"));
    let subjects = subjects(bench);
    let mut taken: [Samples; 4] = Default::default();
    for round in 0..=samples {
        for turn in 0..taken.len() {
            let turn = (round + turn) % taken.len();
            bench.place.settle()?;
            let outcome = match subjects.get(turn) {
                Some((subject, used)) => at_once(subject, &format!("burst-{round}-{turn}"), *used).await?,
                None => Ok(floor.at_once()?),
            };
            if round > 0 {
                taken[turn].add(outcome);
            }
        }
    }
    let titles = [title(subjects[0]), title(subjects[1]), title(subjects[2]), FLOOR.to_owned()];
    let timings = taken.into_iter().zip(&titles).map(|(samples, title)| samples.timing(title)).collect();
    let mut comparison = Comparison::new(bench.heading("CreateVolume of 1 GiB, 16 at once, all of them"), timings)
        .times_as_fast(&titles[2], 20.0)
        .ratio(&titles[0], FLOOR, None);
    for title in &titles {
        let rate = comparison.median_ms(title).map(|milliseconds| f64::from(AT_ONCE) / milliseconds * 1000.0);
        comparison = comparison.with(Figure::new(format!("{title}: volumes"), rate, "/s", None::<Limit>));
    }
    Ok(comparison)
}

/// Makes the volumes, all at once, and removes them.
async fn at_once(subject: &Subject, name: &str, used: Use) -> Result<Outcome<Duration>> {
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for number in 0..AT_ONCE {
        let (subject, name) = (subject.clone(), format!("{name}-{number}"));
        calls.spawn(async move { subject.create(&name, used).await });
    }
    let created = calls.join_all().await;
    let mut outcome = Ok(start.elapsed());
    for id in created {
        match id {
            Ok(id) => need(subject.delete(&id).await, subject)?,
            Err(failure) => outcome = Err(failure),
        }
    }
    Ok(outcome)
}

async fn probe(subject: &Subject) -> Outcome<Duration> {
    let mut identity = subject.server().ok_or("it serves nothing")?.identity.clone();
    let start = Instant::now();
    identity.probe(ProbeRequest {}).await.map_err(|status| status.to_string())?;
    Ok(start.elapsed())
}

/// The least that makes a record durable and commits it with a rename: two fsyncs.
struct Floor {
    directory: Arc<PathBuf>,
    made: AtomicU64,
}

impl Floor {
    fn new(place: &Path) -> Result<Self> {
        let directory = place.join("floor");
        fs::create_dir_all(directory.join("committed"))?;
        Ok(Self { directory: Arc::new(directory), made: AtomicU64::new(0) })
    }

    fn once(&self) -> Result<Duration> {
        let number = self.made.fetch_add(1, Ordering::Relaxed).to_string();
        let (new, committed) = (self.directory.join(&number), self.directory.join("committed"));
        let start = Instant::now();
        let mut file = File::create_new(&new)?;
        file.write_all(&[b'x'; 300])?;
        file.sync_all()?;
        fs::rename(&new, committed.join(&number))?;
        File::open(&committed)?.sync_all()?;
        let time = start.elapsed();
        fs::remove_file(committed.join(&number))?;
        Ok(time)
    }

    fn at_once(&self) -> Result<Duration> {
        let start = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| self.once())).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?.map(drop))
        })?;
        Ok(start.elapsed())
    }
}
