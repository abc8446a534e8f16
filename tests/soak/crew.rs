//! Three writers that are killed and started again, and the store that fails beside them. Kills and outages follow from what the writers
//! say, so nobody waits for a clock.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use replvfs_tests::writers::content::{Newest, raise};
use replvfs_tests::writers::process::{Process, SILENCE, Said};
use replvfs_tests::writers::replica::{Restorer, remove};
use replvfs_tests::writers::{FIRST_STRICT, Job, Journal, LAST_WRITER, Level};
use replvfs_tests::{Rng, Scratch};
use rusqlite::Connection;

use crate::counts::Counts;
use crate::store::{FlakyStore, Outage};

/// The one without replvfs.
const PLAIN: usize = 2;

/// One after the other. Those that switch are mostly in WAL mode, which only one that is alone can leave.
const ERAS: [Journal; 4] = [Journal::Wal, Journal::Rollback, Journal::Wal, Journal::Switching];

/// Lines that the owner says at least before the weather changes.
const FELT: u64 = 60;

/// In the store of one database.
const ENOUGH_BYTES: u64 = 1 << 30;

pub(crate) struct Crew<'a> {
    // Dropped before the folder, so that the processes have ended by then.
    writers: Vec<Process>,
    paused: Vec<bool>,
    sender: Sender<Said>,
    said: Receiver<Said>,
    store: FlakyStore,
    scratch: Scratch,
    rng: Rng,
    journal: Journal,
    eras: usize,
    lines: u64,
    /// The line of all writers at which somebody is killed.
    next_kill: u64,
    /// The line of all writers at which the store fails or is healed.
    next_change: u64,
    /// Lines since then of the one that replicates.
    felt: u64,
    /// The line of all writers at which they go on in another mode.
    next_journal: u64,
    /// Whether their end is expected.
    stopping: bool,
    bytes: u64,
    reported: Newest,
    acked: Newest,
    restorer: Restorer,
    /// Everything that was said, and when the replica was looked at, for whoever looks for the cause of a failure.
    diary: BufWriter<File>,
    begin: Instant,
    counts: &'a mut Counts,
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = format!("{:?} was reported, {:?} acknowledged", self.reported, self.acked);
            self.note(&what);
            let _ = self.diary.flush();
            self.scratch.keep();
            eprintln!("what is left of it: {}", self.scratch.path().display());
        }
    }
}

impl Crew<'_> {
    pub(crate) fn new(rng: Rng, counts: &mut Counts) -> Crew<'_> {
        let scratch = Scratch::new();
        let (sender, said) = channel();
        let diary = File::create(scratch.file("diary")).unwrap();
        let mut crew = Crew {
            writers: Vec::new(),
            paused: vec![false; PLAIN + 1],
            sender,
            said,
            store: FlakyStore::new(scratch.path()),
            scratch,
            rng,
            journal: ERAS[0],
            eras: 0,
            lines: 0,
            next_kill: 100,
            next_change: 500,
            felt: 0,
            next_journal: 10_000,
            stopping: false,
            bytes: 0,
            reported: Newest::new(),
            acked: Newest::new(),
            restorer: Restorer::default(),
            diary: BufWriter::new(diary),
            begin: Instant::now(),
            counts,
        };
        crew.last_writer();
        crew.start();
        crew
    }

    fn start(&mut self) {
        for index in 0..=PLAIN {
            let job = self.job(index);
            self.writers.push(Process::start(index, job, &self.sender));
        }
    }

    fn job(&mut self, index: usize) -> Job {
        self.counts.started += 1;
        let plain = index == PLAIN;
        let rng = &mut self.rng;
        let parameters = format!(
            "&timeout=1s&close_timeout=1s&flush_interval={}&segment_size={}",
            rng.of(&["10ms", "100ms", "1s"]),
            rng.of(&["64KiB", "4MiB"])
        );
        let level = match rng.below(6) {
            _ if plain => Level::Async,
            0 | 1 => Level::Remote,
            2 => Level::Strict,
            _ => Level::Async,
        };
        let id: i64 = index.try_into().unwrap();
        Job {
            uri: if plain {
                format!("file:{}", self.scratch.database().display())
            } else {
                self.scratch.uri_with(&parameters)
            },
            id: if level == Level::Strict { FIRST_STRICT + id } else { id },
            plain,
            level,
            pragmas: Job::draw_pragmas(rng, false),
            journal: self.journal,
            mode: self.journal.mode(rng),
            seed: rng.next(),
            steps: u64::MAX,
            until_owner: false,
            patient: true,
            page_size: 0,
            deletes_merged: false,
            log: self.scratch.file(&format!("log-{index}")).display().to_string(),
        }
    }

    fn note(&mut self, what: &str) {
        let _ = writeln!(self.diary, "{:.3} {what}", self.begin.elapsed().as_secs_f64());
    }

    pub(crate) fn counts(&self) -> &Counts {
        self.counts
    }

    /// Whether it is time for a new database: nothing is ever removed from this one's store.
    pub(crate) fn is_done(&self) -> bool {
        self.bytes > ENOUGH_BYTES
    }

    /// One line of somebody, and what follows from it.
    pub(crate) fn turn(&mut self) {
        let (index, line) = self.said.recv_timeout(SILENCE).expect("the writers have fallen silent");
        self.note(&format!("{index} {}", line.as_deref().unwrap_or("has ended")));
        match line {
            Some(line) => self.hear(index, &line),
            None => self.ended(index),
        }
        if !self.stopping && self.lines >= self.next_journal {
            self.change_the_journal();
            let until = match self.journal {
                Journal::Wal => 8000 + self.rng.below(12_000),
                _ => 500 + self.rng.below(2500),
            };
            self.next_journal = self.lines + until;
        }
        if !self.stopping && self.lines >= self.next_kill {
            self.kill();
            // Long enough for most owners to bring something into the store.
            let until = match self.journal {
                Journal::Wal => 200 + self.rng.below(2000),
                _ => 50 + self.rng.below(800),
            };
            self.next_kill = self.lines + until;
        }
        if !self.stopping && self.lines >= self.next_change && self.weather_was_felt() {
            self.change_the_weather();
            let until = match (self.journal, self.store.outage()) {
                (Journal::Wal, None) => 500 + self.rng.below(4000),
                (Journal::Wal, Some(_)) => 100 + self.rng.below(2500),
                // Commits are slower.
                _ => 50 + self.rng.below(400),
            };
            self.next_change = self.lines + until;
            self.felt = 0;
        }
        // Nobody can open the database without its store.
        if self.store.outage() != Some(Outage::Everything) {
            for index in 0..self.writers.len() {
                if std::mem::take(&mut self.paused[index]) {
                    self.writers[index].go_on();
                }
            }
        }
    }

    fn hear(&mut self, index: usize, line: &str) {
        let Some(line) = self.writers[index].hear(line) else {
            return;
        };
        self.lines += 1;
        self.counts.lines += 1;
        self.felt += u64::from(self.writers[index].heard().owns);
        match line.phase.as_str() {
            "done" => {
                let mode = self.writers[index].heard().mode.clone();
                *self.counts.commits.entry(mode).or_default() += 1;
                raise(&mut self.reported, &line.commits());
            }
            "acked" | "flushed" => {
                self.counts.acknowledged += 1;
                raise(&mut self.acked, &line.commits());
                if self.writers[index].job().id == LAST_WRITER {
                    self.writers[index].end();
                }
            }
            "refused" => {
                // Up to what differs from one to the next.
                let differs = |char: char| char.is_ascii_digit() || char == '/';
                let reason = line.rest.split(differs).next().unwrap_or_default().to_owned();
                *self.counts.refused.entry(reason).or_default() += 1;
            }
            "takeover" => self.counts.takeovers += 1,
            "pause" => self.paused[index] = true,
            _ => {}
        }
    }

    fn ended(&mut self, index: usize) {
        let writer = &mut self.writers[index];
        if writer.finish() {
            let count = match (writer.job().plain, writer.heard().owns) {
                (true, _) => &mut self.counts.killed_plain,
                (false, true) => &mut self.counts.killed_owners,
                (false, false) => &mut self.counts.killed_standbys,
            };
            *count += 1;
        } else {
            assert!(self.stopping, "writer {index} has ended, and was not told to");
        }
        self.paused[index] = false;
        if !self.stopping {
            let job = self.job(index);
            self.writers[index] = Process::start(index, job, &self.sender);
        }
    }

    fn kill(&mut self) {
        for _ in 0..1_u64 << self.rng.below(21) {
            std::hint::spin_loop();
        }
        if self.rng.one_in(10) {
            self.writers.iter_mut().for_each(Process::kill);
            if self.store.outage().is_none() {
                self.acknowledged_is_there();
            }
            return;
        }
        let owner = self.writers.iter().position(|writer| writer.heard().owns);
        let anybody = usize::try_from(self.rng.below(self.writers.len() as u64)).unwrap();
        let one = owner.filter(|_| self.rng.one_in(2)).unwrap_or(anybody);
        self.writers[one].kill();
    }

    /// All are killed. Somebody without replvfs recovers the database, and leaves it in another mode.
    fn change_the_journal(&mut self) {
        self.writers.iter_mut().for_each(Process::kill);
        self.wait_for_all();
        self.heal();
        self.eras += 1;
        self.journal = ERAS[self.eras % ERAS.len()];
        let mode = self.journal.left_behind(&mut self.rng);
        let plain = Connection::open(self.scratch.database()).unwrap();
        let now: String = plain
            .query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0))
            .unwrap();
        assert_eq!(now, mode.to_lowercase());
        drop(plain);
        self.start();
        self.next_change = self.lines + 50 + self.rng.below(400);
    }

    /// Whether the one that replicates has gone on for some steps. When everything is away there may be none.
    fn weather_was_felt(&self) -> bool {
        self.felt >= FELT || self.store.outage() == Some(Outage::Everything)
    }

    /// Looks at the replica at each change to fair weather.
    fn change_the_weather(&mut self) {
        if self.store.outage().is_none() {
            let outage = self.next_outage();
            self.store.fail(outage);
            self.note(&format!("{outage:?} is away"));
            *self.counts.outages.entry(outage).or_default() += 1;
        } else {
            self.heal();
        }
        self.bytes = self.store.bytes();
    }

    /// Each kind comes before any comes again.
    fn next_outage(&mut self) -> Outage {
        let outages = &self.counts.outages;
        let times = |outage: &Outage| outages.get(outage).copied().unwrap_or(0);
        let fewest = Outage::ALL.iter().map(times).min();
        let rare: Vec<Outage> = Outage::ALL
            .into_iter()
            .filter(|outage| Some(times(outage)) == fewest)
            .collect();
        self.rng.of(&rare)
    }

    fn heal(&mut self) {
        self.store.heal();
        self.note("nothing is away");
        self.acknowledged_is_there();
    }

    /// From what is in the store now, while they write.
    fn acknowledged_is_there(&mut self) {
        self.note(&format!("restored from now on, with {:?}", self.acked));
        let what = "what was acknowledged, without the local files";
        let (_, out) = self.restorer.newest(&self.scratch, &self.acked, what);
        remove(&out);
    }

    /// All come to their end; then one more flushes.
    pub(crate) fn everything_is_in_the_replica(&mut self) {
        self.heal();
        self.stop();
        self.acknowledged_is_there();
        self.last_writer();
        self.restorer.is_the_database(&self.scratch, &self.reported);
        self.counts.databases += 1;
        self.counts.restores += self.restorer.restores;
        self.counts.generations += self.store.generations();
        self.counts.bytes += self.store.bytes();
    }

    fn stop(&mut self) {
        self.writers.iter_mut().for_each(Process::end);
        self.wait_for_all();
    }

    fn wait_for_all(&mut self) {
        self.note("they come to their end");
        self.stopping = true;
        while !self.writers.iter().all(Process::has_ended) {
            self.turn();
        }
        self.writers.clear();
        self.stopping = false;
    }

    fn last_writer(&mut self) {
        let mode = self.journal.left_behind(&mut self.rng);
        let job = Job {
            uri: self.scratch.uri_with("&timeout=120s"),
            id: LAST_WRITER,
            level: Level::Async,
            mode,
            page_size: 4096,
            deletes_merged: false,
            ..self.job(0)
        };
        self.writers.push(Process::start(0, job, &self.sender));
        self.wait_for_all();
    }
}
