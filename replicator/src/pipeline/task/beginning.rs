//! Where a generation begins: the one before is ended, the numbers become final, and an image is made.

use std::sync::Arc;

use replvfs_vfs::log::{Base, Continuity};
use replvfs_vfs::resume::Mark;
use replvfs_vfs::types::{PageSize, Txid};

use super::super::Stopped;
use super::super::fenced::{self, fenced};
use super::super::generation::{self, Ended};
use super::super::image::State;
use super::super::images::Beginning;
use super::super::local::{Identity, Stored};
use super::super::making::Maker;
use super::super::seal::{self as ending, Tail};
use super::super::turn::{Before, Turn};
use super::{Chain, Expected, Task};
use crate::format::{Generation, Parent};
use crate::outside;

impl Task {
    pub(super) async fn base(&mut self, mut base: Base) -> Result<(), Stopped> {
        if self.found.must_prove {
            self.shared.fail(&format!(
                "the replica {} holds another database's history, or an older state of this one: {} cannot be proved to follow from its newest transaction. Give the database a replica of its own, or restore from the replica first",
                self.shared.store.replica(),
                self.shared.database
            ));
            return Err(Stopped);
        }
        let page_size = base.snapshot.page_size();
        let goes_on = base.continuity == Continuity::Continued && !self.gap && self.shared.log.is_settled();
        let mut chain = match self.chain.take() {
            // A generation has one page size.
            Some(chain) if goes_on && (chain.last, chain.page_size) == (base.txid, page_size) => chain,
            mut before => {
                // Or its image, once stored, would take the generation that begins now for another writer's.
                if let Some(chain) = &mut before {
                    chain.image = None;
                }
                let abandoned = self.shared.log.abandoned();
                let set_aside = self.set_aside || abandoned.is_some_and(|txid| txid.next() == base.txid);
                if (self.gap || base.continuity == Continuity::Broken) && !set_aside {
                    self.shared.status.discontinuity();
                    self.shared.meters.of.gaps.increment(1);
                }
                let parent = before.as_ref().map(Chain::parent);
                let parent = parent.or_else(|| self.parent_of_what_was_found());
                let parent = parent.map(|parent| self.doubts.leave_aside(parent, abandoned));
                let ended = self.end(before.as_ref().map(Chain::tail)).await?;
                self.settle(&mut base, ended);
                self.begin(&base, ended, page_size, parent).await?
            }
        };
        self.gap = false;
        self.set_aside = false;
        self.found = Expected::default();
        // The one before, which this one replaces, is over first.
        chain.image = None;
        chain.image = self.maker().begin(base, false)?;
        self.chain = Some(chain);
        Ok(())
    }

    /// What an image can be made of that is due.
    pub(super) fn image(&mut self, base: Base) -> Result<(), Stopped> {
        let is_free = !self.gap && !self.images.is_making() && self.progress.has_image();
        if is_free { self.make(base.into()) } else { Ok(()) }
    }

    pub(super) fn make(&mut self, state: State) -> Result<(), Stopped> {
        let maker = self.maker();
        if let Some(chain) = &mut self.chain
            && (chain.last, chain.page_size) == (state.txid, state.page_size)
        {
            chain.image = None;
            chain.image = maker.begin(state, true)?;
        }
        Ok(())
    }

    pub(super) fn maker(&self) -> Maker {
        Maker {
            uploader: self.uploader.clone(),
            progress: Arc::clone(&self.progress),
            images: Arc::clone(&self.images),
            named: self.named,
            folder: self.plan.folder.clone(),
        }
    }

    /// Ends the newest generation, unless that is a successor's: whoever has lost his turn does not get it back by a generation of his own.
    pub(super) async fn end(&mut self, tail: Option<Tail>) -> Result<Ended, Stopped> {
        let Some(mut tail) = tail.filter(|_| self.proved) else {
            self.is_still_empty().await?;
            fenced::is_still_ours(&self.uploader).await?;
            return generation::end_newest(&self.uploader, tail).await;
        };
        let mut turn = ending::create(&self.uploader, tail).await?;
        if turn == Turn::Another
            && let Some(behind) = self.doubts.behind(&self.uploader, tail).await?
        {
            tail = behind;
            turn = ending::create(&self.uploader, tail).await?;
        }
        match turn {
            Turn::Ours => Ok(tail.ended()),
            Turn::Another => {
                let why = "it was taken before this process could end its generation";
                Err(fenced(&self.shared, tail.key(), why).await)
            }
            Turn::Over(why) => Err(fenced(&self.shared, tail.key(), &why).await),
        }
    }

    /// As far as it was when the store was asked.
    async fn is_still_empty(&self) -> Result<(), Stopped> {
        match self.unfounded.filter(|_| !self.progress.has_image()) {
            Some(own) => fenced::is_still_empty(&self.uploader, Some(own)).await,
            None if self.found.was_empty => fenced::is_still_empty(&self.uploader, None).await,
            None => Ok(()),
        }
    }

    /// The database did not prove to go on from where the replica ends: all that is in that generation came before. If it has proved more than that
    /// the numbers are final, and what is behind that place is not known to be in it.
    fn parent_of_what_was_found(&self) -> Option<Parent> {
        let newest = self.found.newest.filter(|_| !self.shared.log.is_settled());
        let end = self.found.end.map(|end| Parent {
            generation: end.generation,
            txid: match end.unfinished {
                true => end.stored.mark.txid,
                false => newest.unwrap_or_default().max(end.stored.mark.txid),
            },
        });
        end.or(self.found.parent)
    }

    /// Makes the numbers final: higher than those of everything that got into the store before.
    fn settle(&self, base: &mut Base, ended: Ended) {
        if self.shared.log.is_settled() {
            return;
        }
        // The slot of a seal is the first number that no transaction of its generation has.
        let next = self.found.newest.map(Txid::next).max(ended.slot).unwrap_or(Txid::ZERO);
        let by = next.0.saturating_sub(base.txid.0);
        self.shared.log.settle(by);
        base.txid.0 += by;
    }

    async fn begin(
        &mut self,
        base: &Base,
        ended: Ended,
        page_size: PageSize,
        parent: Option<Parent>,
    ) -> Result<Chain, Stopped> {
        let database_id = generation::ensure(&self.uploader).await?;
        let begun = generation::begin(&self.uploader, ended, parent, page_size, base.txid).await?;
        self.named = Some((begun.generation, begun.root));
        ending::is_still_sealed(&self.uploader, ended).await?;
        if begun.generation > Generation(1) {
            // Whoever stores an image after this finds the number taken, and acknowledges nothing.
            self.is_still_empty().await?;
        }
        let identity = Identity {
            database_id,
            generation: begun.generation,
            page_size,
        };
        let stored = Stored {
            mark: Mark {
                txid: base.txid,
                position: base.position,
            },
            slot: None,
            previous: begun.root,
        };
        // Before anything is put into it: who finds it empty takes it for what a crash left.
        self.begun(identity, stored).await?;
        self.progress.begin(begun.generation, base.txid);
        self.images.begin(Beginning {
            generation: begun.generation,
            parent: parent.map(|parent| parent.generation),
            page_size,
            from: base.txid,
            newest: None,
        });
        self.proved = true;
        Ok(Chain {
            generation: begun.generation,
            page_size,
            last: base.txid,
            previous: begun.root,
            before: Before {
                first: base.txid.next(),
                slot: None,
                content: None,
            },
            image: None,
        })
    }

    /// Notes which generation is being written. That this fails is trouble for the next start only.
    pub(super) async fn begun(&self, identity: Identity, stored: Stored) -> Result<(), Stopped> {
        let shared = Arc::clone(&self.shared);
        let noting = outside::blocking(move || {
            if let Err(problem) = shared.local.begun(identity, stored) {
                shared.trouble(&problem);
            }
        });
        noting.await.map_err(|stopped| {
            self.shared.fail(&format!(
                "noting the state failed, which is a bug in replvfs: {stopped}"
            ));
            Stopped
        })
    }
}
