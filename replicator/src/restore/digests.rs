//! A state of the database as one digest a page: what is enough to compare it with another one, in a file without a name that is a few thousandths of its
//! length. Owns the file of digests; the way of the pages into it is that of a restore.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use replvfs_vfs::types::{PageSize, Pgno, Txid};

use super::apply::Applier;
use super::pages::{PageFile, is_zero};
use super::{ProgressFn, Reporter, RestoreError, image, log};
use crate::history::Plan;
use crate::store::Store;

/// Bytes of one page's digest.
const DIGEST_BYTES: usize = 16;

/// Digests that are read at a time.
const AT_ONCE: u32 = 4096;

/// Bytes of a database's header.
pub const HEADER_BYTES: usize = 100;

/// One page's.
type Digest = [u8; DIGEST_BYTES];

/// A digest for each page of a database. The pages themselves are forgotten, but for the header of the first one. Clones are the same table.
#[derive(Debug, Clone)]
pub struct Digests {
    file: Arc<File>,
    page_size: PageSize,
    header: Arc<Mutex<[u8; HEADER_BYTES]>>,
}

impl Digests {
    /// Of a database without pages. It makes a file without a name in the folder for temporary ones.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub fn new(page_size: PageSize) -> io::Result<Digests> {
        Ok(Digests {
            file: Arc::new(tempfile::tempfile()?),
            page_size,
            header: Arc::new(Mutex::new([0; HEADER_BYTES])),
        })
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Bytes a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The first bytes of page 1.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        *self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts off what is behind, or appends pages of zeros.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_page_count(&self, page_count: u32) -> io::Result<()> {
        self.file.set_len(u64::from(page_count) * DIGEST_BYTES as u64)
    }

    /// Notes pages that follow each other.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn put(&self, first: Pgno, pages: &[u8]) -> io::Result<()> {
        let lock_page = self.page_size.lock_page().get();
        let mut digests = Vec::with_capacity(pages.len() / self.page_size.as_usize() * DIGEST_BYTES);
        for (number, page) in (first.get()..).zip(pages.chunks_exact(self.page_size.as_usize())) {
            // It never has content, whatever a file has there.
            let digest = if number == lock_page {
                Digest::default()
            } else {
                digest(page)
            };
            digests.extend_from_slice(&digest);
        }
        if first.get() == 1
            && let Some(header) = pages.first_chunk()
        {
            *self.header.lock().unwrap_or_else(PoisonError::into_inner) = *header;
        }
        self.file.write_all_at(&digests, place(first))
    }

    /// Calls `visit` with the pages of `1..=page_count` that are other ones in `other`, ascending. Both tables must have as many.
    pub(crate) fn differing(&self, other: &Digests, page_count: u32, mut visit: impl FnMut(Pgno)) -> io::Result<()> {
        let mut buffers = [(); 2].map(|()| vec![0; AT_ONCE as usize * DIGEST_BYTES]);
        let [ours, theirs] = &mut buffers;
        let mut done = 0;
        while let Some(first) = Pgno::new(done + 1).filter(|first| first.get() <= page_count) {
            let count = AT_ONCE.min(page_count - done);
            for (table, buffer) in [(self, &mut *ours), (other, &mut *theirs)] {
                buffer.truncate(count as usize * DIGEST_BYTES);
                table.file.read_exact_at(buffer, place(first))?;
            }
            let (ours, _) = ours.as_chunks::<DIGEST_BYTES>();
            let (theirs, _) = theirs.as_chunks::<DIGEST_BYTES>();
            let both = (first.get()..).zip(ours.iter().zip(theirs));
            both.filter(|(_, (ours, theirs))| ours != theirs)
                .filter_map(|(number, _)| Pgno::new(number))
                .for_each(&mut visit);
            done += count;
        }
        Ok(())
    }
}

/// A page of zeros has that of a page that was never written.
fn digest(page: &[u8]) -> Digest {
    if is_zero(page) {
        return Digest::default();
    }
    let mut digest = Digest::default();
    blake3::Hasher::new().update(page).finalize_xof().fill(&mut digest);
    digest
}

fn place(page: Pgno) -> u64 {
    u64::from(page.get() - 1) * DIGEST_BYTES as u64
}

/// A state out of the store.
#[derive(Debug)]
pub(crate) struct Digested {
    pub(crate) digests: Digests,
    pub(crate) page_count: u32,
    pub(crate) txid: Txid,
}

/// Reads and checks all that a restore of the plan's state does, and keeps the digests.
pub(crate) async fn digest_state(
    store: &Store,
    plan: &Plan,
    progress: Option<ProgressFn>,
) -> Result<Digested, RestoreError> {
    let manifest = &plan.manifest;
    let (pages, digests) = PageFile::digests(manifest.page_size)?;
    let report = Arc::new(Reporter::new(progress, plan));
    image::write_image(store, manifest, &pages, &report).await?;
    let applier = Applier::new(pages, manifest.page_count, (manifest.txid, manifest.taken_at));
    let (Applier { page_count, last, .. }, _) = log::apply_log(store, plan, applier, &report).await?;
    Ok(Digested {
        digests,
        page_count,
        txid: last.0,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn page(number: u32) -> Pgno {
        Pgno::new(number).unwrap()
    }

    #[test]
    fn just_the_pages_that_differ_are_told() {
        let size = PageSize::new(512).unwrap();
        let tables = [(); 2].map(|()| Digests::new(size).unwrap());
        let count = 3 * AT_ONCE + 5;
        let pages: Vec<u8> = (0..count).flat_map(|n| [n as u8 % 7; 512]).collect();
        for table in &tables {
            table.put(page(1), &pages).unwrap();
        }
        let [ours, theirs] = tables;
        let told = |count| {
            let mut told = Vec::new();
            ours.differing(&theirs, count, |page| told.push(page.get())).unwrap();
            told
        };
        assert_eq!(told(count), [] as [u32; 0]);
        let wanted = [1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE + 9, count];
        for number in wanted {
            let mut other = [number as u8; 512];
            other[511] = 99;
            theirs.put(page(number), &other).unwrap();
        }
        assert_eq!(told(count), wanted);
        assert_eq!(told(AT_ONCE), wanted[..2]);
    }

    #[test]
    fn what_was_cut_off_comes_back_as_zeros() {
        let size = PageSize::new(512).unwrap();
        let (cut, never) = (Digests::new(size).unwrap(), Digests::new(size).unwrap());
        cut.put(page(1), &[7; 3 * 512]).unwrap();
        cut.set_page_count(2).unwrap();
        cut.set_page_count(3).unwrap();
        never.put(page(1), &[7; 2 * 512]).unwrap();
        never.put(page(3), &[0; 512]).unwrap();
        cut.differing(&never, 3, |page| panic!("{page}")).unwrap();
        // The lock page's content is nobody's.
        let lock_page = size.lock_page();
        cut.put(lock_page, &[9; 512]).unwrap();
        never.set_page_count(lock_page.get()).unwrap();
        cut.differing(&never, lock_page.get(), |page| panic!("{page}")).unwrap();
    }
}
