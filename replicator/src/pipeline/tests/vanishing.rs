//! What an image relies on is deleted by another process while it is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opendal::raw::{Layer, OpStat, RpStat, Service, ServiceInfo, Servicer, oio};
use opendal::{OperationContext, Operator, Result, services};
use replvfs_vfs::log::{Base, Continuity};
use replvfs_vfs::snapshot::Snapshot;
use replvfs_vfs::types::{Pgno, Position, Txid, UnixMillis};

use super::{page_size, uploader};
use crate::format::{CHUNK_BYTES, Generation, Key};
use crate::history::SURVEYED;
use crate::history::images::{list_images, manifest_at};
use crate::pipeline::changed::Touched;
use crate::pipeline::due::Rule;
use crate::pipeline::image::{Counts, Made, make};
use crate::pipeline::images::{Beginning, Images, Ticket};
use crate::pipeline::uploader::Uploader;
use crate::store::Store;
use crate::store::forward::forward;

const FIRST: Generation = Generation(1);
const CHUNKS: usize = 4;

/// Deletes an object as soon as somebody was told that it is there.
#[derive(Debug)]
struct Deleter {
    healthy: Operator,
    path: String,
    armed: Arc<AtomicBool>,
}

impl Layer for Deleter {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(Deleting {
            inner,
            healthy: self.healthy.clone(),
            path: self.path.clone(),
            armed: Arc::clone(&self.armed),
        })
    }
}

#[derive(Debug)]
struct Deleting {
    inner: Servicer,
    healthy: Operator,
    path: String,
    armed: Arc<AtomicBool>,
}

impl Service for Deleting {
    type Reader = oio::Reader;
    type Writer = oio::Writer;
    type Lister = oio::Lister;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(capability create_dir read write delete list copy rename presign);

    fn info(&self) -> ServiceInfo {
        ServiceInfo::new("deleting", "/", "deleting")
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        let told = self.inner.stat(ctx, path, args).await;
        if path == self.path && self.armed.swap(false, Ordering::Relaxed) {
            self.healthy.delete(path).await?;
        }
        told
    }
}

/// A generation with images of a database in which nothing but the first chunk ever changes.
struct Generations {
    healthy: Store,
    uploader: Uploader,
    images: Images,
    armed: Arc<AtomicBool>,
}

impl Generations {
    /// The object at `path` vanishes behind the next who looks for it once this is armed.
    fn new(path: &str, rule: Rule) -> Generations {
        let operator = Operator::new(services::Memory::default()).unwrap();
        let armed = Arc::new(AtomicBool::new(false));
        let faulty = operator.clone().layer(Deleter {
            healthy: operator.clone(),
            path: path.to_owned(),
            armed: Arc::clone(&armed),
        });
        let images = Images::new(rule);
        images.begin(Beginning {
            generation: FIRST,
            parent: None,
            page_size: page_size(),
            from: Txid(0),
            newest: None,
        });
        Generations {
            healthy: Store::from_operator(operator),
            uploader: uploader(Store::from_operator(faulty)),
            images,
            armed,
        }
    }

    fn ticket(&self, token: u64) -> Ticket {
        let mut touched = Touched::nothing(page_size());
        touched.begin((CHUNKS * CHUNK_BYTES / 4096) as u32);
        touched.page(Pgno::new(1).unwrap());
        self.images.logged(&touched, (CHUNKS * CHUNK_BYTES / 4096) as u32);
        self.images.make(token).unwrap()
    }

    async fn image(&self, txid: u64, ticket: &Ticket) -> Made {
        self.image_taken_at(txid, ticket, 0).await
    }

    async fn image_taken_at(&self, txid: u64, ticket: &Ticket, at: i64) -> Made {
        let mut bytes = vec![0; CHUNKS * CHUNK_BYTES];
        for (number, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
            chunk[0] = if number == 0 { txid as u8 } else { number as u8 + 100 };
        }
        let base = Base {
            txid: Txid(txid),
            position: Position::default(),
            taken_at: UnixMillis(at),
            continuity: Continuity::Continued,
            snapshot: Snapshot::for_test(page_size(), bytes),
        };
        make(&self.uploader, base.into(), ticket).await.unwrap()
    }

    async fn delete_chunks_of(&self, making: u64) {
        for (key, _) in self.healthy.list("chunk/").await.unwrap() {
            match key {
                Key::Chunk(name) if name.token == making => self.healthy.delete(&key).await.unwrap(),
                _ => {}
            }
        }
    }

    async fn listed(&self) -> Vec<Txid> {
        list_images(&self.healthy, FIRST).await.unwrap()
    }

    async fn is_whole(&self, txid: u64) {
        let manifest = manifest_at(&self.healthy, FIRST, Txid(txid)).await.unwrap().unwrap();
        assert_eq!(manifest.chunks.len(), CHUNKS);
        for name in manifest.chunks {
            self.healthy.size(&Key::Chunk(name)).await.unwrap();
        }
    }
}

fn made(read: usize, sent: usize) -> Made {
    Made::Stored(Counts {
        chunks: CHUNKS,
        read,
        sent,
    })
}

/// The second of two images, after the first, which is deleted as soon as the second one's maker has seen it for the first time. Whoever deleted it `goes
/// on` five minutes later, with what only that one named when he looked.
async fn after_one_that_vanishes(goes_on: bool) -> (Generations, Made) {
    let of = Generations::new(&Key::Image(FIRST, Txid(1)).path(), Rule::default());
    let ticket = of.ticket(1);
    assert_eq!(of.image(1, &ticket).await, made(4, 4));
    of.images.stored(&ticket, Txid(1), UnixMillis(0));
    of.armed.store(true, Ordering::Relaxed);
    let ticket = of.ticket(2);
    let going_on = async {
        if goes_on {
            tokio::time::sleep(SURVEYED).await;
            of.delete_chunks_of(1).await;
        }
    };
    let (second, ()) = tokio::join!(of.image(2, &ticket), going_on);
    assert!(
        !of.armed.load(Ordering::Relaxed),
        "nobody looked for it before the image was stored"
    );
    of.images.given_up(&ticket);
    (of, second)
}

/// It may have been deleted because the second one is there.
#[tokio::test(start_paused = true)]
async fn an_image_whose_basis_vanishes_stays_if_it_is_whole() {
    let (of, second) = after_one_that_vanishes(false).await;
    assert_eq!(of.listed().await, [Txid(2)], "nothing can be restored any more");
    assert_eq!(second, made(1, 1));
    of.is_whole(2).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_whose_basis_vanishes_with_its_chunks_is_withdrawn() {
    let (of, second) = after_one_that_vanishes(true).await;
    assert_eq!(second, Made::Failed);
    assert!(of.listed().await.is_empty(), "the image that relies on it stays");
    let ticket = of.ticket(3);
    assert_eq!(of.image(3, &ticket).await, made(4, 4));
    of.is_whole(3).await;
}

#[tokio::test]
async fn an_image_that_took_long_is_looked_at_again() {
    let slow = Rule {
        slow: Duration::ZERO,
        settle: Duration::ZERO,
        ..Rule::default()
    };
    let of = Generations::new("nothing", slow);
    let ticket = of.ticket(1);
    assert_eq!(of.image(1, &ticket).await, made(4, 4));
    of.images.stored(&ticket, Txid(1), UnixMillis(0));
    let ticket = of.ticket(2);
    assert_eq!(of.image(2, &ticket).await, made(1, 1));
    of.images.given_up(&ticket);
    // One that was sent for this one already has been deleted since.
    let ours = of
        .healthy
        .list("chunk/")
        .await
        .unwrap()
        .into_iter()
        .find_map(|(key, _)| match key {
            Key::Chunk(name) if name.token == 2 => Some(key),
            _ => None,
        });
    of.healthy.delete(&ours.unwrap()).await.unwrap();
    of.healthy.delete(&Key::Image(FIRST, Txid(2))).await.unwrap();
    let again = of.ticket(3);
    assert_eq!(again.sent.token, 2);
    assert_eq!(of.image(2, &again).await, Made::Failed);
    assert_eq!(of.listed().await, [Txid(1)]);
    of.images.given_up(&again);
    let ticket = of.ticket(4);
    assert_eq!(ticket.sent.token, 4, "what is lost is not taken for sent");
    assert_eq!(of.image(2, &ticket).await, made(1, 1));
    of.is_whole(2).await;
}

/// A making that was ended between storing its image and looking: the next of the same state meets its manifest.
#[tokio::test]
async fn what_another_making_left_counts_only_if_it_is_whole() {
    // With the same bytes, and with others.
    for taken_at in [0, 1] {
        let of = Generations::new("nothing", Rule::default());
        let ticket = of.ticket(1);
        assert_eq!(of.image(1, &ticket).await, made(4, 4));
        of.images.given_up(&ticket);
        let name = manifest_at(&of.healthy, FIRST, Txid(1)).await.unwrap().unwrap().chunks[3];
        of.healthy.delete(&Key::Chunk(name)).await.unwrap();
        let ticket = of.ticket(2);
        assert_eq!(of.image_taken_at(1, &ticket, taken_at).await, Made::Failed);
        assert!(of.listed().await.is_empty());
        // Nor is what was sent for it believed any longer.
        of.images.given_up(&ticket);
        let ticket = of.ticket(3);
        assert_eq!(of.image(1, &ticket).await, made(4, 4));
    }
}
