//! What is known for the next image of the generation: what was touched since the last one, when that was taken, and what has been sent for one that
//! was given up.
//!
//! Owns the rule that what was touched is forgotten only when the manifest of an image that has it is in the store. Shared by the task, which
//! stores segments, and by the making of images beside it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replvfs_vfs::types::{PageSize, Txid, UnixMillis};
use tokio::time::Instant;

use super::changed::Touched;
use super::due::{self, Rule, Situation};
use super::shared::now;
use crate::format::{ChunkHash, Generation};
use crate::outside::Moment;

/// What was sent by one that was given up is used again for this part of the grace period. The rest is left for the next one to come to its end in.
const USED_AGAIN: u32 = 8;

/// The chunks that were sent for an image, or for several of which none was finished.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) token: u64,
    since: Moment,
    /// Those that the store has confirmed.
    hashes: Mutex<HashSet<ChunkHash>>,
    /// One of them is not there any more.
    is_lost: AtomicBool,
}

impl Sent {
    pub(super) fn new(token: u64) -> Sent {
        Sent {
            token,
            since: Moment::now(),
            hashes: Mutex::default(),
            is_lost: AtomicBool::new(false),
        }
    }

    pub(super) fn add(&self, hash: ChunkHash) {
        self.hashes().insert(hash);
    }

    pub(super) fn has(&self, hash: ChunkHash) -> bool {
        self.hashes().contains(&hash)
    }

    fn hashes(&self) -> MutexGuard<'_, HashSet<ChunkHash>> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the first chunk may have been sent.
    pub(super) fn age(&self) -> Duration {
        self.since.age()
    }

    /// Not to be used again.
    pub(super) fn lose(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    fn may_be_used_again(&self, limit: Duration) -> bool {
        self.age() < limit && !self.is_lost.load(Ordering::Relaxed)
    }
}

/// What the making of an image needs to know.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    number: u64,
    pub(super) generation: Generation,
    pub(super) parent: Option<Generation>,
    /// `touched` knows all transactions behind this one.
    pub(super) known_from: Txid,
    pub(super) touched: Touched,
    pub(super) sent: Arc<Sent>,
    pub(super) rule: Rule,
}

/// How urgent another image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// It has been for as long again.
    Long,
}

/// The generation, as the task takes it up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beginning {
    pub(super) generation: Generation,
    pub(super) parent: Option<Generation>,
    pub(super) page_size: PageSize,
    /// What follows on this is told to [`Images::logged`].
    pub(super) from: Txid,
    /// The newest image that was there already.
    pub(super) newest: Option<Txid>,
}

#[derive(Debug)]
pub(super) struct Images {
    rule: Rule,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    generation: Generation,
    parent: Option<Generation>,
    page_size: PageSize,
    known_from: Txid,
    /// By the transactions behind `known_from`: those that are in the image that is being made, and those after it.
    before: Touched,
    after: Touched,
    page_count: u32,
    last: Option<Last>,
    /// Raw bytes, at least, of what was logged between the last image and `known_from`.
    unseen: u64,
    /// The newest making, and whether it goes on.
    number: u64,
    making: bool,
    sent: Option<Arc<Sent>>,
    given_up: Option<Instant>,
}

/// The newest image of the generation.
#[derive(Debug, Clone, Copy)]
struct Last {
    txid: Txid,
    /// `None` until its manifest was read.
    taken_at: Option<UnixMillis>,
}

impl Images {
    pub(super) fn new(rule: Rule) -> Images {
        Images {
            rule,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on only this generation counts.
    pub(super) fn begin(&self, beginning: Beginning) {
        let nothing = Touched::nothing(beginning.page_size);
        let mut state = self.state();
        let number = state.as_ref().map_or(0, |state| state.number) + 1;
        // Each transaction has a page at least.
        let transactions = beginning
            .newest
            .map_or(0, |newest| beginning.from.0.saturating_sub(newest.0));
        *state = Some(State {
            generation: beginning.generation,
            parent: beginning.parent,
            page_size: beginning.page_size,
            known_from: beginning.from,
            before: nothing.clone(),
            after: nothing,
            page_count: 0,
            last: beginning.newest.map(|txid| Last { txid, taken_at: None }),
            unseen: transactions.saturating_mul(u64::from(beginning.page_size.get())),
            number,
            making: false,
            sent: None,
            given_up: None,
        });
    }

    /// A segment is in the store, after which the database has so many pages.
    pub(super) fn logged(&self, touched: &Touched, page_count: u32) {
        if let Some(state) = self.state().as_mut() {
            state.after.merge(touched);
            state.page_count = page_count;
        }
    }

    /// An image of which it is not known yet when it was taken.
    pub(super) fn unknown(&self) -> Option<(Generation, Txid)> {
        let state = self.state();
        let state = state.as_ref()?;
        let last = state.last.filter(|last| last.taken_at.is_none())?;
        Some((state.generation, last.txid))
    }

    /// It was read, or is not there any more.
    pub(super) fn learned(&self, txid: Txid, taken_at: Option<UnixMillis>) {
        if let Some(state) = self.state().as_mut()
            && let Some(last) = state.last.as_mut().filter(|last| last.txid == txid)
        {
            // What is gone has been replaced by another one, or needs to be.
            last.taken_at = Some(taken_at.unwrap_or(UnixMillis(0)));
        }
    }

    /// Whether another image is due, now that a segment was stored.
    pub(super) fn due(&self) -> Option<Due> {
        let state = self.state();
        let state = state.as_ref().filter(|state| !state.making)?;
        let paused = state.given_up.is_some_and(|since| since.elapsed() < self.rule.pause);
        // The first one is made in any case.
        let taken_at = state.last.and_then(|last| last.taken_at).filter(|_| !paused)?;
        let situation = Situation {
            logged: state.before.bytes() + state.after.bytes(),
            // Whatever was seen by nobody weighs as if it had not been compressed.
            stored: state.unseen + state.before.stored() + state.after.stored(),
            database: u64::from(state.page_count) * u64::from(state.page_size.get()),
            taken_at,
            now: now(),
        };
        let is_overdue = || due::is_overdue(&self.rule, &situation);
        let now = due::is_due(&self.rule, &situation);
        now.then(|| if is_overdue() { Due::Long } else { Due::Now })
    }

    pub(super) fn is_making(&self) -> bool {
        self.state().as_ref().is_some_and(|state| state.making)
    }

    /// An image of the state after all that was [logged](Images::logged) is to be made; one that is being made does not count any more. `token` is any
    /// number.
    pub(super) fn make(&self, token: u64) -> Option<Ticket> {
        let mut state = self.state();
        let state = state.as_mut()?;
        let after = std::mem::replace(&mut state.after, Touched::nothing(state.page_size));
        state.before.merge(&after);
        state.number += 1;
        state.making = true;
        let limit = self.rule.grace / USED_AGAIN;
        let again = state.sent.take().filter(|sent| sent.may_be_used_again(limit));
        let sent = again.unwrap_or_else(|| Arc::new(Sent::new(token)));
        state.sent = Some(Arc::clone(&sent));
        Some(Ticket {
            number: state.number,
            generation: state.generation,
            parent: state.parent,
            known_from: state.known_from,
            touched: state.before.clone(),
            sent,
            rule: self.rule,
        })
    }

    /// Its manifest is in the store.
    pub(super) fn stored(&self, ticket: &Ticket, txid: Txid, taken_at: UnixMillis) {
        self.end(ticket, |state| {
            state.before = Touched::nothing(state.page_size);
            state.known_from = txid;
            state.unseen = 0;
            state.last = Some(Last {
                txid,
                taken_at: Some(taken_at),
            });
            state.sent = None;
            state.given_up = None;
        });
    }

    /// It will not be in the store. What was touched stays so.
    pub(super) fn given_up(&self, ticket: &Ticket) {
        self.end(ticket, |state| state.given_up = Some(Instant::now()));
    }

    fn end(&self, ticket: &Ticket, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.state().as_mut().filter(|state| state.number == ticket.number) {
            state.making = false;
            change(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{CHUNK_BYTES, ChunkName, Manifest};
    use crate::history::GRACE;
    use replvfs_vfs::types::{Pgno, Position};

    const PAGES: u32 = 64;

    fn page_size() -> PageSize {
        PageSize::new(65_536).expect("a page size")
    }

    fn images(newest: Option<u64>) -> Images {
        let images = Images::new(Rule {
            least: 100_000,
            pause: Duration::ZERO,
            ..Rule::default()
        });
        images.begin(Beginning {
            generation: Generation(1),
            parent: None,
            page_size: page_size(),
            from: Txid(10),
            newest: newest.map(Txid),
        });
        images
    }

    fn write(images: &Images, page: u32) {
        let mut touched = Touched::nothing(page_size());
        touched.begin(PAGES);
        touched.page(Pgno::new(page).expect("a page"));
        // To fetch and to write it is as much as to fetch 65,536 bytes.
        images.logged(&touched.in_bytes(65_536 - 65_536 / 16), PAGES);
    }

    fn left(ticket: &Ticket) -> Vec<usize> {
        let before = Manifest {
            generation: Generation(1),
            txid: Txid(0),
            page_size: page_size(),
            page_count: PAGES,
            taken_at: UnixMillis(0),
            position: Position::default(),
            chunks: vec![
                ChunkName {
                    hash: ChunkHash([0; 32]),
                    token: 0
                };
                PAGES as usize * 65_536 / CHUNK_BYTES
            ],
        };
        (0..4)
            .filter(|chunk| ticket.touched.leaves(&before, PAGES, *chunk))
            .collect()
    }

    #[test]
    fn what_was_touched_outlives_a_making_that_failed() {
        let images = images(None);
        write(&images, 1);
        let first = images.make(1).expect("a generation");
        write(&images, 17);
        images.given_up(&first);
        assert_eq!(left(&first), [1, 2, 3]);
        let second = images.make(2).expect("a generation");
        assert_eq!(left(&second), [2, 3]);
        write(&images, 33);
        images.stored(&second, Txid(12), now());
        let third = images.make(3).expect("a generation");
        assert_eq!((left(&third), third.known_from), (vec![0, 1, 3], Txid(12)));
    }

    /// Forgetting any of them would leave a chunk as it was.
    #[test]
    fn each_single_segment_counts() {
        const CHUNKS: u32 = 100;
        let images = images(None);
        let of = |chunk: u32| {
            let mut touched = Touched::nothing(page_size());
            touched.begin(CHUNKS * 16);
            touched.page(Pgno::new(chunk * 16 + chunk % 16 + 1).expect("a page"));
            touched
        };
        let name = ChunkName {
            hash: ChunkHash([0; 32]),
            token: 0,
        };
        let before = Manifest {
            generation: Generation(1),
            txid: Txid(0),
            page_size: page_size(),
            page_count: CHUNKS * 16,
            taken_at: UnixMillis(0),
            position: Position::default(),
            chunks: vec![name; CHUNKS as usize],
        };
        let left = |ticket: &Ticket| {
            let leaves = |chunk: &usize| ticket.touched.leaves(&before, CHUNKS * 16, *chunk);
            (0..CHUNKS as usize).filter(leaves).collect::<Vec<_>>()
        };
        for round in 0..4_u32 {
            for chunk in 0..CHUNKS / 2 {
                images.logged(&of(2 * chunk + round % 2), CHUNKS * 16);
            }
            let ticket = images.make(round.into()).expect("a generation");
            // The second sees what the first had, which was given up; the third and the fourth see their own.
            let expected: Vec<usize> = match round {
                0 | 2 => (0..CHUNKS as usize).filter(|chunk| chunk % 2 == 1).collect(),
                1 => Vec::new(),
                _ => (0..CHUNKS as usize).filter(|chunk| chunk % 2 == 0).collect(),
            };
            assert_eq!(left(&ticket), expected, "round {round}");
            if round == 0 {
                images.given_up(&ticket);
            } else {
                images.stored(&ticket, Txid(20 + u64::from(round)), now());
            }
        }
    }

    #[test]
    fn one_that_was_replaced_changes_nothing_any_more() {
        let images = images(None);
        write(&images, 1);
        let first = images.make(1).expect("a generation");
        write(&images, 17);
        let second = images.make(2).expect("a generation");
        images.stored(&first, Txid(11), now());
        assert!(images.is_making());
        images.given_up(&second);
        let third = images.make(3).expect("a generation");
        assert_eq!((left(&third), third.known_from), (vec![2, 3], Txid(10)));
    }

    #[test]
    fn what_was_sent_is_used_again_until_an_image_has_it() {
        let images = images(None);
        let first = images.make(1).expect("a generation");
        first.sent.add(ChunkHash([1; 32]));
        images.given_up(&first);
        let second = images.make(2).expect("a generation");
        assert!(second.sent.token == 1 && second.sent.has(ChunkHash([1; 32])));
        images.stored(&second, Txid(11), now());
        let third = images.make(3).expect("a generation");
        assert!(third.sent.token == 3 && !third.sent.has(ChunkHash([1; 32])));
    }

    #[test]
    fn what_was_sent_long_ago_is_not_named_any_more() {
        let images = images(None);
        let first = images.make(1).expect("a generation");
        images.given_up(&first);
        let ago = |time: Duration| Sent {
            since: Moment::ago(Duration::ZERO, time).expect("a time"),
            ..Sent::new(7)
        };
        images.state().as_mut().expect("a generation").sent = Some(Arc::new(ago(GRACE / USED_AGAIN)));
        assert_eq!(images.make(2).expect("a generation").sent.token, 2);
        images.state().as_mut().expect("a generation").sent = Some(Arc::new(ago(GRACE / USED_AGAIN / 2)));
        let young = images.make(3).expect("a generation");
        assert_eq!(young.sent.token, 7);
        young.sent.lose();
        assert_eq!(images.make(4).expect("a generation").sent.token, 4);
    }

    #[test]
    fn the_next_image_is_due_by_what_was_logged_since_the_last() {
        let images = images(None);
        write(&images, 1);
        write(&images, 1);
        assert!(images.due().is_none(), "there is no first image yet");
        let first = images.make(1).expect("a generation");
        write(&images, 2);
        images.stored(&first, Txid(12), now());
        for page in 3..34 {
            assert!(images.due().is_none(), "page {page}");
            write(&images, page);
        }
        write(&images, 1);
        assert!(images.due().is_some(), "half of its 64 pages, and one");
        let second = images.make(2).expect("a generation");
        assert!(images.due().is_none());
        images.given_up(&second);
        assert!(images.due().is_some());
    }

    #[test]
    fn what_an_earlier_process_logged_counts_as_far_as_it_is_known() {
        let images = images(Some(9));
        write(&images, 1);
        assert_eq!(images.unknown(), Some((Generation(1), Txid(9))));
        assert!(images.due().is_none(), "when that one was taken is not known");
        images.learned(Txid(9), Some(now()));
        assert!(images.due().is_none());
        images.learned(Txid(9), None);
        assert!(images.due().is_some(), "it is not there any more");
    }
}
