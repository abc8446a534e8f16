//! The store, and the way to it: requests and answers get lost, come late, or twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opendal::raw::{
    Layer, OpCopy, OpCreateDir, OpDelete, OpList, OpPresign, OpRead, OpRename, OpStat, OpWrite, RpCreateDir, RpPresign,
    RpRead, RpRename, RpStat, Service, ServiceInfo, Servicer, Timestamp, oio,
};
use opendal::{
    Buffer, BytesRange, Capability, Error, ErrorKind, Metadata, MetadataBuilder, OperationContext, Operator, Result,
    services,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::world::{Rng, Sim};
use crate::format::{Key, Seal, SegmentIndex};
use crate::outside::simulated::{Rule, is_broken};
use crate::store::Store;

/// When a client gives up.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How late an effect may be.
const LATEST_MS: u64 = 180_000;

/// A process that may be stopped for a while.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<(bool, Vec<Waker>)>,
}

impl Gate {
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().unwrap().0
    }

    pub(super) fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub(super) fn open(&self) {
        let wakers = {
            let mut state = self.state.lock().unwrap();
            state.0 = false;
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll(&self, waker: &Waker) -> Poll<()> {
        let mut state = self.state.lock().unwrap();
        if !state.0 {
            return Poll::Ready(());
        }
        state.1.push(waker.clone());
        Poll::Pending
    }

    async fn passed(&self) {
        std::future::poll_fn(|context| self.poll(context.waker())).await;
    }
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    listed_from: Instant,
    modified: SystemTime,
}

impl Object {
    fn listed(&self) -> (u64, SystemTime) {
        (self.bytes.len() as u64, self.modified)
    }
}

/// What happens to requests, each of so many in a thousand.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    refused: u64,
    request_lost: u64,
    answer_lost: u64,
    late: u64,
    doubled: u64,
}

#[derive(Debug)]
pub(super) struct Sky {
    objects: BTreeMap<String, Object>,
    /// What was first under each name: the history, whatever was deleted of it.
    ever: BTreeMap<String, Bytes>,
    /// What was deleted and is still listed until then.
    ghosts: BTreeMap<String, (Object, Instant)>,
    weather: Weather,
    latency_ms: u64,
    lists_late: bool,
    is_remote: bool,
    cut_until: [Option<Instant>; 4],
    /// Requests on their way whose client has gone.
    pub(super) on_their_way: usize,
    newest_generation: u64,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Fine,
    Refused,
    RequestLost,
    AnswerLost,
    Late(Duration),
    Doubled(Duration),
}

impl Sky {
    pub(super) fn new(rng: &mut Rng) -> Sky {
        let mut chance = |most: u64| if rng.below(3) == 0 { 0 } else { rng.below(most) };
        let weather = Weather {
            refused: chance(60),
            request_lost: chance(60),
            answer_lost: chance(120),
            late: chance(120),
            doubled: chance(60),
        };
        Sky {
            objects: BTreeMap::new(),
            ever: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            weather,
            latency_ms: [2, 20, 200][rng.below(3) as usize],
            lists_late: rng.below(4) == 0,
            is_remote: rng.below(4) == 0,
            cut_until: [None; 4],
            on_their_way: 0,
            newest_generation: 0,
        }
    }

    pub(super) fn clear_up(&mut self) {
        self.weather = Weather::default();
        self.latency_ms = 0;
        self.cut_until = [None; 4];
        self.lists_late = false;
        self.list_all();
    }

    /// So much time has passed that it lists what it has.
    pub(super) fn list_all(&mut self) {
        self.ghosts.clear();
        for object in self.objects.values_mut() {
            object.listed_from = Instant::now();
        }
    }

    pub(super) fn cut(&mut self, machine: usize, until: Instant) {
        self.cut_until[machine] = Some(until);
    }

    /// Whatever was deleted.
    pub(super) fn get(&self, key: &Key) -> Option<Bytes> {
        self.ever.get(&key.path()).cloned()
    }

    /// Whatever was deleted.
    pub(super) fn keys(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        let key = |(path, bytes): (&String, &Bytes)| Some((Key::parse(path)?, bytes.len() as u64));
        self.ever.iter().filter_map(key)
    }

    /// The first transaction that can be restored from a generation. Those before it are in its image, without a number of their own.
    pub(super) fn first_image(&self, generation: u64) -> u64 {
        let images = self.keys().filter_map(|(key, _)| match key {
            Key::Image(of, txid) if of.0 == generation => Some(txid.0),
            _ => None,
        });
        images.min().unwrap_or_default()
    }

    /// What is not there although a transaction was acknowledged.
    pub(super) fn missing(&self, generation: u64, txid: u64) -> Option<String> {
        let (mut image, mut slot) = (None, None);
        for (key, len) in self.keys() {
            match key {
                Key::Image(of, at) if of.0 == generation && at.0 <= txid => image = Some(at.0),
                Key::Log(of, at) if of.0 == generation && at.0 <= txid && len != Seal::LEN as u64 => slot = Some(key),
                _ => {}
            }
        }
        let Some(image) = image else {
            return Some("image".to_owned());
        };
        if image == txid {
            return None;
        }
        let end = slot.and_then(|slot| SegmentIndex::from_object(&self.get(&slot)?).ok());
        let has = end.is_some_and(|index| index.header().last.0 >= txid);
        (!has).then(|| "segment".to_owned())
    }

    fn fate(&self, rng: &mut Rng) -> Fate {
        let weather = self.weather;
        let mut at = rng.below(1000);
        let mut is = |chance: u64| {
            let is = at < chance;
            at = at.wrapping_sub(chance);
            is
        };
        if is(weather.refused) {
            Fate::Refused
        } else if is(weather.request_lost) {
            Fate::RequestLost
        } else if is(weather.answer_lost) {
            Fate::AnswerLost
        } else if is(weather.late) {
            Fate::Late(rng.delay(LATEST_MS))
        } else if is(weather.doubled) {
            Fate::Doubled(rng.delay(LATEST_MS))
        } else {
            Fate::Fine
        }
    }
}

impl Sim {
    /// The store as a process on that machine sees it.
    pub(super) fn store(self: &Arc<Sim>, machine: usize, gate: &Arc<Gate>) -> Store {
        let view = View {
            sim: Arc::clone(self),
            machine,
            gate: Arc::clone(gate),
        };
        Store::from_operator(Operator::new(services::Memory::default()).unwrap().layer(view))
    }

    /// Creates an object at this moment.
    fn put(&self, path: &str, bytes: &Bytes, conditional: bool) -> Result<()> {
        let seal = path.contains("/log/") && bytes.len() == Seal::LEN;
        let mut sky = self.sky.lock().unwrap();
        let exists = sky.objects.contains_key(path);
        if seal && (is_broken(Rule::Seal) || exists && is_broken(Rule::SealBehindWinner)) {
            return Ok(());
        }
        if exists && conditional && !is_broken(Rule::Condition) {
            return Err(Error::new(ErrorKind::ConditionNotMatch, "it exists"));
        }
        self.trace(|| {
            format!(
                "    store: {path} ({} bytes){}",
                bytes.len(),
                if seal { ", a seal" } else { "" }
            )
        });
        let lag = if sky.lists_late {
            self.rng().delay(20_000)
        } else {
            Duration::ZERO
        };
        let listed_from = Instant::now() + lag;
        let object = Object {
            bytes: bytes.clone(),
            listed_from,
            modified: self.wall_clock(),
        };
        sky.objects.insert(path.to_owned(), object);
        // In a slot that was taken before it belongs to no history.
        let is_stray = !exists && sky.ever.contains_key(path);
        if is_stray {
            self.count(|counts| counts.strays += 1);
        } else {
            sky.ever.insert(path.to_owned(), bytes.clone());
        }
        match Key::parse(path) {
            Some(Key::Generation(number)) => sky.newest_generation = sky.newest_generation.max(number.0),
            Some(Key::Log(generation, _)) if !seal && !is_stray && generation.0 < sky.newest_generation => {
                let newest = sky.newest_generation;
                drop(sky);
                self.violated(format!("{path} got into the log after generation {newest} had begun"));
            }
            Some(Key::Image(..)) => self.count(|counts| counts.images += 1),
            _ => {}
        }
        self.count(|counts| counts.seals += u64::from(seal));
        Ok(())
    }

    fn remove(&self, path: &str) {
        let mut sky = self.sky.lock().unwrap();
        let Some(object) = sky.objects.remove(path) else {
            return;
        };
        self.trace(|| format!("    store: {path} is deleted"));
        self.count(|counts| counts.deleted += 1);
        if sky.lists_late {
            let until = Instant::now() + self.rng().delay(20_000);
            sky.ghosts.insert(path.to_owned(), (object, until));
        }
    }
}

#[derive(Clone)]
struct View {
    sim: Arc<Sim>,
    machine: usize,
    gate: Arc<Gate>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store as machine {} sees it", self.machine)
    }
}

impl Layer for View {
    fn apply_service(&self, _: Servicer) -> Servicer {
        Arc::new(self.clone())
    }
}

fn reset() -> Error {
    Error::new(ErrorKind::Unexpected, "connection reset by peer").set_temporary()
}

impl View {
    async fn wait(&self, times: u32) {
        let latency = self.latency() * times;
        if !latency.is_zero() {
            sleep(latency).await;
        }
    }

    fn latency(&self) -> Duration {
        let longest = self.sim.sky.lock().unwrap().latency_ms;
        self.sim.rng().delay(longest)
    }

    /// Waits as a client whose network is away does, and tells whether it was.
    async fn is_cut(&self) -> bool {
        let until = self.sim.sky.lock().unwrap().cut_until[self.machine];
        let Some(until) = until.filter(|until| *until > Instant::now()) else {
            return false;
        };
        sleep_until(until.min(Instant::now() + TIMEOUT)).await;
        true
    }

    /// One request. `effect` is what the store does, as often as the request gets there.
    async fn call<T: Send + 'static>(&self, effect: impl Fn(&Sim) -> Result<T> + Send + Sync + 'static) -> Result<T> {
        let sim = &self.sim;
        sim.count(|counts| counts.store_calls += 1);
        self.gate.passed().await;
        if self.is_cut().await {
            self.gate.passed().await;
            return Err(reset());
        }
        let fate = {
            let sky = sim.sky.lock().unwrap();
            sky.fate(&mut sim.rng())
        };
        self.wait(1).await;
        let answer = match fate {
            Fate::Fine => effect(sim),
            Fate::Refused => Err(Error::new(ErrorKind::RateLimited, "SlowDown").set_temporary()),
            Fate::RequestLost => {
                sim.count(|counts| counts.lost_requests += 1);
                Err(reset())
            }
            Fate::AnswerLost => {
                let done = effect(sim);
                sim.count(|counts| counts.lost_answers += u64::from(done.is_ok()));
                self.wait(1).await;
                Err(reset())
            }
            Fate::Late(late) => {
                self.later(late, effect, |counts| &mut counts.late_effects);
                self.wait(4).await;
                Err(reset())
            }
            Fate::Doubled(late) => {
                let effect = Arc::new(effect);
                let again = Arc::clone(&effect);
                let at_once = sim.rng().below(2) == 0;
                let first = effect(sim);
                if at_once {
                    sim.count(|counts| counts.doubled += 1);
                    effect(sim)
                } else {
                    self.later(late, move |sim| again(sim), |counts| &mut counts.doubled);
                    first
                }
            }
        };
        self.wait(1).await;
        let answer = if self.is_cut().await { Err(reset()) } else { answer };
        self.gate.passed().await;
        answer
    }

    /// It gets there when nobody waits for it any more, perhaps.
    fn later<T>(
        &self,
        late: Duration,
        effect: impl Fn(&Sim) -> Result<T> + Send + Sync + 'static,
        counted: fn(&mut super::world::Counts) -> &mut u64,
    ) {
        let sim = Arc::clone(&self.sim);
        sim.sky.lock().unwrap().on_their_way += 1;
        tokio::spawn(async move {
            sleep(late).await;
            let done = effect(&sim).is_ok();
            sim.count(|counts| *counted(counts) += u64::from(done));
            sim.sky.lock().unwrap().on_their_way -= 1;
        });
    }

    async fn create(&self, path: String, bytes: Bytes, conditional: bool) -> Result<()> {
        if is_broken(Rule::AnswerFirst) {
            let (view, late) = (self.clone(), self.latency() * 8);
            let gate = Arc::clone(&self.gate);
            let rest = async move {
                sleep(late).await;
                let _ = view.call(move |sim| sim.put(&path, &bytes, conditional)).await;
                drop(gate);
            };
            tokio::spawn(rest);
            return Ok(());
        }
        self.call(move |sim| sim.put(&path, &bytes, conditional)).await
    }
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "there is none")
}

impl Sim {
    fn object(&self, path: &str) -> Result<Bytes> {
        let sky = self.sky.lock().unwrap();
        sky.objects
            .get(path)
            .map(|object| object.bytes.clone())
            .ok_or_else(not_found)
    }

    fn listed(&self, prefix: &str) -> Vec<(String, (u64, SystemTime))> {
        let (sky, now) = (self.sky.lock().unwrap(), Instant::now());
        let of_it = sky
            .objects
            .range(prefix.to_owned()..)
            .take_while(|(path, _)| path.starts_with(prefix));
        let (there, late): (Vec<_>, Vec<_>) = of_it.partition(|(_, object)| object.listed_from <= now);
        self.count(|counts| counts.lagging_lists += u64::from(!late.is_empty()));
        let gone = sky
            .ghosts
            .iter()
            .filter(|(path, (_, until))| path.starts_with(prefix) && *until > now && !sky.objects.contains_key(*path));
        let gone = gone.map(|(path, (object, _))| (path, object));
        there
            .into_iter()
            .chain(gone)
            .map(|(path, object)| (path.clone(), object.listed()))
            .collect()
    }
}

impl Service for View {
    type Reader = oio::StreamReader<ReadIt>;
    type Writer = WriteIt;
    type Lister = oio::HierarchyLister<ListIt>;
    type Deleter = oio::OneShotDeleter<DeleteIt>;
    type Copier = ();
    type Composer = ();

    fn info(&self) -> ServiceInfo {
        let remote = self.sim.sky.lock().unwrap().is_remote;
        ServiceInfo::new(if remote { "sky" } else { "memory" }, "/", "simulated")
    }

    fn capability(&self) -> Capability {
        Capability {
            read: true,
            write: true,
            write_can_empty: true,
            write_with_if_not_exists: true,
            stat: true,
            list: true,
            delete: true,
            list_with_recursive: true,
            ..Capability::default()
        }
    }

    async fn create_dir(&self, _: &OperationContext, _: &str, _: OpCreateDir) -> Result<RpCreateDir> {
        Err(Error::new(ErrorKind::Unsupported, "no folders"))
    }

    async fn stat(&self, _: &OperationContext, path: &str, _: OpStat) -> Result<RpStat> {
        let path = path.to_owned();
        let bytes = self.call(move |sim| sim.object(&path)).await?;
        Ok(RpStat::new(MetadataBuilder::file(bytes.len() as u64).build()))
    }

    fn read(&self, _: &OperationContext, path: &str, _: OpRead) -> Result<Self::Reader> {
        Ok(oio::StreamReader::new(ReadIt(self.clone(), path.to_owned())))
    }

    fn write(&self, _: &OperationContext, path: &str, args: OpWrite) -> Result<Self::Writer> {
        Ok(WriteIt(self.clone(), path.to_owned(), args.if_not_exists(), Vec::new()))
    }

    fn delete(&self, _: &OperationContext) -> Result<Self::Deleter> {
        Ok(oio::OneShotDeleter::new(DeleteIt(self.clone())))
    }

    fn list(&self, _: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        let found = ListIt(self.clone(), path.trim_start_matches('/').to_owned(), None);
        Ok(oio::HierarchyLister::new(found, path, args.recursive()))
    }

    fn copy(&self, _: &OperationContext, _: &str, _: &str, _: OpCopy) -> Result<Self::Copier> {
        Err(Error::new(ErrorKind::Unsupported, "nothing is copied"))
    }

    async fn rename(&self, _: &OperationContext, _: &str, _: &str, _: OpRename) -> Result<RpRename> {
        Err(Error::new(ErrorKind::Unsupported, "nothing is renamed"))
    }

    async fn presign(&self, _: &OperationContext, _: &str, _: OpPresign) -> Result<RpPresign> {
        Err(Error::new(ErrorKind::Unsupported, "nothing is presigned"))
    }
}

pub(super) struct ReadIt(View, String);

impl oio::StreamRead for ReadIt {
    async fn open(&self, range: BytesRange) -> Result<(RpRead, Box<dyn oio::ReadStreamDyn>)> {
        let path = self.1.clone();
        let bytes = self.0.call(move |sim| sim.object(&path)).await?;
        let (all, len) = (Buffer::from(bytes.clone()), bytes.len() as u64);
        let part = all.slice(range.to_content_range(len as usize)?);
        Ok((RpRead::new(MetadataBuilder::file(len).build()), Box::new(part)))
    }
}

pub(super) struct WriteIt(View, String, bool, Vec<Buffer>);

impl oio::Write for WriteIt {
    async fn write(&mut self, part: Buffer) -> Result<()> {
        self.3.push(part);
        Ok(())
    }

    async fn close(&mut self) -> Result<Metadata> {
        let bytes = std::mem::take(&mut self.3)
            .into_iter()
            .flatten()
            .collect::<Buffer>()
            .to_bytes();
        let len = bytes.len() as u64;
        self.0.create(self.1.clone(), bytes, self.2).await?;
        Ok(MetadataBuilder::file(len).build())
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}

pub(super) struct DeleteIt(View);

impl oio::OneShotDelete for DeleteIt {
    async fn delete_once(&self, path: String, _: OpDelete) -> Result<()> {
        let effect = move |sim: &Sim| {
            sim.remove(&path);
            Ok(())
        };
        self.0.call(effect).await
    }
}

type Listed = std::vec::IntoIter<(String, (u64, SystemTime))>;

pub(super) struct ListIt(View, String, Option<Listed>);

impl oio::List for ListIt {
    async fn next(&mut self) -> Result<Option<oio::Entry>> {
        if self.2.is_none() {
            let prefix = self.1.clone();
            let found = self.0.call(move |sim| Ok(sim.listed(&prefix))).await?;
            self.2 = Some(found.into_iter());
        }
        let next = self.2.as_mut().and_then(Iterator::next);
        Ok(next.map(|(path, (len, modified))| {
            let mut metadata = MetadataBuilder::file(len);
            metadata.last_modified(Timestamp::try_from(modified).unwrap());
            oio::Entry::new(&path, metadata.build())
        }))
    }
}
