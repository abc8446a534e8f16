//! A newer state put over a database that is there, in place: as a WAL, which becomes the database's with one rename, and is then folded into the
//! file.
//!
//! Owns the order of the steps, so that after a crash between any two of them the database is the old one or the new one, whole, and the state
//! file beside it says which. The file itself stays: another one in its place would leave connections of other processes, which have the old
//! one open and know the new one's WAL or journal by its name, writing one into the other. Whether the new state may take the old one's place
//! is the caller's.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use replvfs_vfs::held::{Held, wal_file};
use replvfs_vfs::resume::{Left, Mark, Next};
use replvfs_vfs::types::{PageSize, Pgno, Salts};
use replvfs_vfs::wal::WalWriter;
use tempfile::NamedTempFile;

use super::target::{TargetFile, sync_folder};
use super::{Aside, RestoreError, state};
use crate::format::LocalState;
use crate::local_state;

/// Bytes that are compared at a time, at least a page.
const COMPARED_BYTES: usize = 256 * 1024;

/// Makes the database that is held the new one, which must have pages.
///
/// # Errors
///
/// See [`RestoreError`]. The database is as it was; or, where only its folder could not be synced, the new one, and after a loss of power either.
pub(crate) fn put_over(held: &mut Held, aside: Aside) -> Result<(), RestoreError> {
    let mut over = Over::prepare(held, aside)?;
    over.commit()?;
    // Now the WAL says it all. What is left undone, any connection does.
    if let Err(error) = over.fold(held) {
        replvfs_vfs::warning!(; "{error}; the newest state stays in the WAL until a checkpoint");
    }
    Ok(())
}

/// The state that is being put over the old one.
struct Over {
    target: TargetFile,
    page_size: PageSize,
    page_count: u32,
    state: LocalState,
    state_file: PathBuf,
    wal: Option<NamedTempFile>,
    wal_file: PathBuf,
    salts: Salts,
}

impl Over {
    /// Writes the WAL under another name, and makes it durable.
    fn prepare(held: &mut Held, aside: Aside) -> Result<Over, RestoreError> {
        let Aside {
            target,
            mut state,
            restored,
            ..
        } = aside;
        let (page_size, page_count) = (restored.page_size, restored.page_count);
        let (new, salts) = (target.file(), held.random_salts());
        let written = wal_beside(held, &target).and_then(|wal| {
            let mut out = BufWriter::with_capacity(COMPARED_BYTES, wal);
            let mut writer = WalWriter::new(page_size, salts);
            out.write_all(&writer.header())?;
            each_changed(held, &new, page_size, page_count, |_, pgno, page| {
                if pgno.get() > 1 {
                    out.write_all(&writer.frame(pgno, 0, page))?;
                    out.write_all(page)?;
                }
                Ok(())
            })?;
            // There is always something to commit.
            let mut page = vec![0; page_size.as_usize()];
            new.read_exact_at(&mut page, 0)?;
            let first = Pgno::new(1).ok_or(io::ErrorKind::InvalidData)?;
            out.write_all(&writer.frame(first, page_count, &page))?;
            out.write_all(&page)?;
            let wal = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            wal.as_file().sync_all()?;
            Ok((wal, writer.position()))
        });
        let wal_file = wal_file(held.path());
        let (wal, position) = written.map_err(failed("write the newest state beside", held.path()))?;
        state.left = Some(Left {
            mark: Mark {
                txid: state.stored.txid,
                position,
            },
            // What a restart makes of it: in a WAL with its own salts the end must be there.
            next: Next::Wal(Salts(salts.0.wrapping_add(1), salts.1)),
        });
        Ok(Over {
            state_file: local_state::state_file(held.path()),
            target,
            page_size,
            page_count,
            state,
            wal: Some(wal),
            wal_file,
            salts,
        })
    }

    /// The old one until the rename, the new one from then on.
    fn commit(&mut self) -> Result<(), RestoreError> {
        self.write_state(Some(self.salts))?;
        if let Some(wal) = self.wal.take() {
            let renamed = wal.persist(&self.wal_file);
            renamed.map_err(|error| failed("replace", &self.wal_file)(error.error))?;
        }
        // Before the file may be touched.
        sync_folder(self.target.folder())
    }

    /// Makes the file itself the new one, says so beside it, and removes the WAL.
    fn fold(&mut self, held: &mut Held) -> Result<(), RestoreError> {
        let (page_size, page_count) = (self.page_size, self.page_count);
        let folded = each_changed(held, &self.target.file(), page_size, page_count, |held, pgno, page| {
            held.write(page, page_size.offset_of(pgno))
        });
        let print = folded.and_then(|()| {
            held.truncate(u64::from(page_count) * u64::from(page_size.get()))?;
            held.sync()?;
            Ok(held.set_apart())
        });
        let print = print.map_err(failed("write", held.path()))?;
        let (Some(print), Some(left)) = (print, &mut self.state.left) else {
            // Without a stamp of its own the file proves nothing, and the WAL does.
            return Ok(());
        };
        left.next = Next::File(print);
        self.write_state(None)?;
        self.remove_wal()
    }

    /// Emptied first: should its name come back after a loss of power, it must not hide what was written since.
    fn remove_wal(&self) -> Result<(), RestoreError> {
        let emptied = File::options().write(true).open(&self.wal_file).and_then(|wal| {
            wal.set_len(0)?;
            wal.sync_all()
        });
        emptied.map_err(failed("empty", &self.wal_file))?;
        fs::remove_file(&self.wal_file).map_err(failed("remove", &self.wal_file))?;
        sync_folder(self.target.folder())
    }

    fn write_state(&mut self, if_wal: Option<Salts>) -> Result<(), RestoreError> {
        let before = local_state::read(&self.state_file).map_err(|error| RestoreError::File {
            action: "go on from",
            path: self.state_file.clone(),
            error: io::Error::other(error),
        })?;
        self.state.sequence = before.map_or(0, |before| before.sequence) + 1;
        self.state.if_wal = if_wal;
        state::write(&self.state_file, &self.state)
    }
}

/// An empty file in the same folder, that whoever may use the database may use.
fn wal_beside(held: &Held, target: &TargetFile) -> io::Result<NamedTempFile> {
    let like = fs::metadata(held.path())?;
    let mut builder = tempfile::Builder::new();
    let wal = builder
        .prefix(".")
        .suffix(".replvfs-restore")
        .tempfile_in(target.folder())?;
    wal.as_file().set_permissions(like.permissions())?;
    let made = wal.as_file().metadata()?;
    if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
        // As SQLite does with its own: only root may, and only root has to.
        let _ = std::os::unix::fs::fchown(wal.as_file(), Some(like.uid()), Some(like.gid()));
    }
    Ok(wal)
}

/// The pages of the new state that are not at their place in the file that is held, in order, without the lock page.
fn each_changed(
    held: &mut Held,
    new: &File,
    page_size: PageSize,
    page_count: u32,
    mut each: impl FnMut(&mut Held, Pgno, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let bytes = page_size.as_usize();
    let at_once = u32::try_from(COMPARED_BYTES / bytes).unwrap_or(1).max(1);
    let held_bytes = held.size()?;
    let mut buffers = [(); 2].map(|()| vec![0; at_once as usize * bytes]);
    let [ours, theirs] = &mut buffers;
    let mut first = 1;
    while first <= page_count {
        let pages = at_once.min(page_count - first + 1);
        let first_pgno = Pgno::new(first).ok_or(io::ErrorKind::InvalidData)?;
        let (len, offset) = (pages as usize * bytes, page_size.offset_of(first_pgno));
        new.read_exact_at(&mut theirs[..len], offset)?;
        held.read(&mut ours[..len], offset)?;
        let both = theirs[..len].chunks_exact(bytes).zip(ours[..len].chunks_exact(bytes));
        for (number, (theirs, ours)) in (first..).zip(both) {
            let pgno = Pgno::new(number).ok_or(io::ErrorKind::InvalidData)?;
            let is_there = page_size.offset_of(pgno) + bytes as u64 <= held_bytes;
            if pgno != page_size.lock_page() && !(is_there && theirs == ours) {
                each(held, pgno, theirs)?;
            }
        }
        first = match first.checked_add(pages) {
            Some(next) => next,
            None => break,
        };
    }
    Ok(())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |error| RestoreError::File { action, path, error }
}
