//! A store that fails on demand: a service between OpenDAL's operator and the memory that keeps the objects.
//!
//! Every step that goes over the network in a real one is one call, whatever it is for: a test enumerates them by number.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opendal::raw::oio::{List, Read, ReadStream, Write};
use opendal::raw::{
    Layer, OpCopy, OpCreateDir, OpList, OpPresign, OpRead, OpRename, OpStat, OpWrite, RpCreateDir, RpPresign, RpRead,
    RpRename, RpStat, Service, ServiceInfo, Servicer, oio,
};
use opendal::{
    Buffer, BytesRange, Capability, Error, ErrorKind, Metadata, OperationContext, Operator, Result, services,
};
use tokio::sync::Notify;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is refused, and may be repeated.
    Temporary,
    /// It is refused until somebody changes something.
    Permanent,
    /// It is not answered, unless the connection is said to be lost.
    Hang,
    /// It is answered late.
    Late,
    /// It is done, and the answer is lost.
    Lost,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Trouble; 5] = [
        Trouble::Temporary,
        Trouble::Permanent,
        Trouble::Hang,
        Trouble::Late,
        Trouble::Lost,
    ];
}

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storm {
    /// To which call, counted from 0.
    pub at: usize,
    /// What it is.
    pub trouble: Trouble,
    /// And to all that follow, until the weather is fair.
    pub lasting: bool,
}

impl Storm {
    /// To every call, until the weather is fair.
    pub const fn lasting(trouble: Trouble) -> Storm {
        Storm {
            at: 0,
            trouble,
            lasting: true,
        }
    }
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lasting = if self.lasting { " and all that follow" } else { "" };
        write!(f, "call {}{lasting}: {:?}", self.at, self.trouble)
    }
}

/// What went over the network.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Objects or parts of them that were asked for.
    pub gets: u64,
    /// Objects that were put there.
    pub puts: u64,
    /// Questions without content, and pages of lists.
    pub others: u64,
    /// Lists that were begun.
    pub lists: u64,
    /// Deletions that were begun.
    pub deletes: u64,
    /// Content in bytes.
    pub received: u64,
    /// Content in bytes.
    pub sent: u64,
}

/// The state of one store.
#[derive(Debug, Default)]
pub struct Weather {
    state: Mutex<State>,
    distance: Mutex<Duration>,
    connections_lost: Notify,
}

#[derive(Debug, Default)]
struct State {
    storm: Option<Storm>,
    calls: Vec<&'static str>,
    struck: bool,
    traffic: Traffic,
}

impl Weather {
    /// From now on this happens, to calls that are counted anew.
    pub fn storm(&self, storm: Option<Storm>) {
        *self.state.lock().unwrap() = State {
            storm,
            ..State::default()
        };
    }

    /// From now on each request takes so long, as a client of a real store counts them: an object that is put there is one, and so is one that is read.
    pub fn move_away(&self, distance: Duration) {
        *self.distance.lock().unwrap() = distance;
    }

    async fn travel(&self) {
        let distance = *self.distance.lock().unwrap();
        if !distance.is_zero() {
            tokio::time::sleep(distance).await;
        }
    }

    /// From now on everything works. What hangs goes on hanging.
    pub fn clear_up(&self) {
        self.state.lock().unwrap().storm = None;
    }

    /// The same, and who waits for an answer is told that there will be none.
    pub fn clear_up_and_lose_connections(&self) {
        self.clear_up();
        self.connections_lost.notify_waiters();
    }

    /// What was called since the last storm was announced.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Whether the storm has met a call.
    pub fn has_struck(&self) -> bool {
        self.state.lock().unwrap().struck
    }

    /// What was done since the last storm was announced.
    pub fn traffic(&self) -> Traffic {
        self.state.lock().unwrap().traffic
    }

    fn count(&self, count: impl FnOnce(&mut Traffic)) {
        count(&mut self.state.lock().unwrap().traffic);
    }

    fn next(&self, what: &'static str) -> Option<Trouble> {
        let mut state = self.state.lock().unwrap();
        let n = state.calls.len();
        state.calls.push(what);
        let storm = state
            .storm
            .filter(|storm| n == storm.at || n > storm.at && storm.lasting)?;
        state.struck = true;
        Some(storm.trouble)
    }

    async fn pass<T>(&self, what: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        // Before the weather is asked: once it is fair nobody is told any more.
        let connection_lost = self.connections_lost.notified();
        match self.next(what) {
            None => call.await,
            Some(Trouble::Temporary) => Err(Error::new(ErrorKind::RateLimited, "SlowDown").set_temporary()),
            Some(Trouble::Permanent) => Err(Error::new(ErrorKind::PermissionDenied, "AccessDenied")),
            Some(Trouble::Hang) => {
                connection_lost.await;
                Err(reset())
            }
            Some(Trouble::Late) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                call.await
            }
            Some(Trouble::Lost) => {
                call.await?;
                Err(reset())
            }
        }
    }
}

fn reset() -> Error {
    Error::new(ErrorKind::Unexpected, "connection reset by peer").set_temporary()
}

/// A store in two views: as the world sees it, and as it is.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    /// What happens to calls through `faulty`.
    pub weather: Arc<Weather>,
    /// As it is.
    pub healthy: Operator,
    /// As the world sees it.
    pub faulty: Operator,
}

impl FaultyStore {
    /// An empty one. With `conditional`, it offers to create objects only if they do not exist.
    pub fn new(conditional: bool) -> FaultyStore {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let healthy = Operator::new(services::Memory::default()).unwrap();
        let weather = Arc::new(Weather::default());
        let faulty = healthy.clone().layer(Sky {
            weather: Arc::clone(&weather),
            name: format!("store-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            conditional,
        });
        FaultyStore {
            weather,
            healthy,
            faulty,
        }
    }
}

#[derive(Debug)]
struct Sky {
    weather: Arc<Weather>,
    name: String,
    conditional: bool,
}

impl Layer for Sky {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(FaultyService {
            inner,
            weather: Arc::clone(&self.weather),
            // Another scheme than memory's: what a server says about conditions has to be proved.
            info: ServiceInfo::new("faulty", "/", &self.name),
            conditional: self.conditional,
        })
    }
}

#[derive(Debug)]
struct FaultyService {
    inner: Servicer,
    weather: Arc<Weather>,
    info: ServiceInfo,
    conditional: bool,
}

/// A reader, a writer or a lister.
struct Under<T> {
    inner: T,
    weather: Arc<Weather>,
    /// Of a list, the page that has the next entry.
    asked: bool,
}

impl FaultyService {
    fn under<T>(&self, inner: T) -> Under<T> {
        Under {
            inner,
            weather: Arc::clone(&self.weather),
            asked: false,
        }
    }
}

impl Service for FaultyService {
    type Reader = Under<oio::Reader>;
    type Writer = Under<oio::Writer>;
    type Lister = Under<oio::Lister>;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    fn info(&self) -> ServiceInfo {
        self.info.clone()
    }

    fn capability(&self) -> Capability {
        Capability {
            write_with_if_not_exists: self.conditional,
            ..self.inner.capability()
        }
    }

    async fn create_dir(&self, ctx: &OperationContext, path: &str, args: OpCreateDir) -> Result<RpCreateDir> {
        self.weather
            .pass("create_dir", self.inner.create_dir(ctx, path, args))
            .await
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        self.weather.count(|traffic| traffic.others += 1);
        self.weather.travel().await;
        self.weather.pass("stat", self.inner.stat(ctx, path, args)).await
    }

    fn read(&self, ctx: &OperationContext, path: &str, args: OpRead) -> Result<Self::Reader> {
        Ok(self.under(self.inner.read(ctx, path, args)?))
    }

    fn write(&self, ctx: &OperationContext, path: &str, args: OpWrite) -> Result<Self::Writer> {
        Ok(self.under(self.inner.write(ctx, path, args)?))
    }

    fn delete(&self, ctx: &OperationContext) -> Result<Self::Deleter> {
        self.weather.count(|traffic| traffic.deletes += 1);
        self.inner.delete(ctx)
    }

    fn list(&self, ctx: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        self.weather.count(|traffic| traffic.lists += 1);
        Ok(self.under(self.inner.list(ctx, path, args)?))
    }

    fn copy(&self, ctx: &OperationContext, from: &str, to: &str, args: OpCopy) -> Result<Self::Copier> {
        self.inner.copy(ctx, from, to, args)
    }

    async fn rename(&self, ctx: &OperationContext, from: &str, to: &str, args: OpRename) -> Result<RpRename> {
        self.weather
            .pass("rename", self.inner.rename(ctx, from, to, args))
            .await
    }

    async fn presign(&self, ctx: &OperationContext, path: &str, args: OpPresign) -> Result<RpPresign> {
        self.inner.presign(ctx, path, args).await
    }
}

impl<T: Read> Read for Under<T> {
    async fn open(&self, range: BytesRange) -> Result<(RpRead, Box<dyn oio::ReadStreamDyn>)> {
        self.weather.count(|traffic| traffic.gets += 1);
        self.weather.travel().await;
        let (answer, stream) = self.weather.pass("open", self.inner.open(range)).await?;
        let stream = Under {
            inner: stream,
            weather: Arc::clone(&self.weather),
            asked: true,
        };
        Ok((answer, Box::new(stream)))
    }

    async fn read(&self, range: BytesRange) -> Result<(RpRead, Buffer)> {
        self.weather.count(|traffic| traffic.gets += 1);
        self.weather.travel().await;
        let (answer, content) = self.weather.pass("read", self.inner.read(range)).await?;
        self.weather.count(|traffic| traffic.received += content.len() as u64);
        Ok((answer, content))
    }
}

impl<T: ReadStream> ReadStream for Under<T> {
    async fn read(&mut self) -> Result<Buffer> {
        let content = self.weather.pass("read", self.inner.read()).await?;
        self.weather.count(|traffic| traffic.received += content.len() as u64);
        Ok(content)
    }
}

impl<T: Write> Write for Under<T> {
    async fn write(&mut self, part: Buffer) -> Result<()> {
        self.weather.count(|traffic| traffic.sent += part.len() as u64);
        self.weather.pass("write", self.inner.write(part)).await
    }

    /// Only now the object exists: a trouble here comes after a part of it was sent.
    async fn close(&mut self) -> Result<Metadata> {
        self.weather.count(|traffic| traffic.puts += 1);
        self.weather.travel().await;
        self.weather.pass("close", self.inner.close()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.weather.pass("abort", self.inner.abort()).await
    }
}

impl<T: List> List for Under<T> {
    async fn next(&mut self) -> Result<Option<oio::Entry>> {
        self.weather.count(|traffic| traffic.others += 1);
        if !std::mem::replace(&mut self.asked, true) {
            self.weather.travel().await;
        }
        self.weather.pass("list", self.inner.next()).await
    }
}
