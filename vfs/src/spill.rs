//! Transactions that are not in the store when their WAL restarts, kept in a file beside the database.
//!
//! Owns the file `<database>-replvfs-spill` and its layout. It is read by the next process on this machine, never by another release's:
//! what is not understood is as if it was not there, and costs a discontinuity in the history, no data. Leaves to the capture when
//! a WAL may restart.
//!
//! A header (magic, version) is followed by records: a fixed part with a CRC-32 of its own, then the transaction's frames as they stood in the WAL,
//! whose checksums are checked when they are sealed.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::resume::Mark;
use crate::transaction::Transaction;
use crate::types::{PageSize, Position, Salts, Txid, UnixMillis};

const MAGIC: [u8; 8] = *b"rplspil1";
const HEADER_BYTES: u64 = MAGIC.len() as u64;
const RECORD_BYTES: usize = 80;
/// Transactions that are written with one call, which takes no more than 1024 parts.
const AT_ONCE: usize = 512;
/// Appended to the database's name.
const SUFFIX: &str = "-replvfs-spill";

/// The file, as this process writes it.
#[derive(Debug)]
pub(crate) struct Spill {
    file: Arc<File>,
    /// What it is called by now, and what it will be called when it is whole.
    path: PathBuf,
    published: PathBuf,
    bytes: u64,
    last: Txid,
    /// [`Log::pushed_bytes`](crate::log::Log::pushed_bytes) when all that was in the log was in it.
    pub(crate) covers: u64,
}

pub(crate) fn path_for(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

impl Spill {
    /// An empty one. The one that is there stays until [`Spill::publish`], since it may hold what this one is to take over.
    pub(crate) fn create(database: &Path) -> io::Result<Spill> {
        let published = path_for(database);
        let mut path = published.clone().into_os_string();
        path.push("-new");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        // Its pages are nobody's business who may not read the database; a next process under another user may have to.
        file.set_permissions(fs::metadata(database)?.permissions())?;
        file.write_all_at(&MAGIC, 0)?;
        Ok(Spill {
            file: Arc::new(file),
            path: path.into(),
            published,
            bytes: HEADER_BYTES,
            last: Txid::ZERO,
            covers: 0,
        })
    }

    /// The next process finds what is in it by now.
    pub(crate) fn publish(&mut self) -> io::Result<()> {
        if self.path != self.published {
            fs::rename(&self.path, &self.published)?;
            self.path.clone_from(&self.published);
        }
        Ok(())
    }

    /// The newest transaction in it; 0 when it is empty.
    pub(crate) fn last(&self) -> Txid {
        self.last
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Empties it without making another file: pages that the system has for a file already are written several times faster than new ones. What was
    /// in it has to be in the store. `false`, and nothing done, when somebody still reads from it, its name leads elsewhere, others may read
    /// it than may read the database, or it has more than `largest` bytes.
    pub(crate) fn begin_again(&mut self, database: &Path, largest: u64) -> bool {
        if self.path != self.published || Arc::get_mut(&mut self.file).is_none() {
            return false;
        }
        let found =
            |file: io::Result<Metadata>| file.map(|file| (file.dev(), file.ino(), file.mode(), file.len())).ok();
        let own = found(self.file.metadata());
        let permissions = |mode: u32| mode & 0o7777;
        let same = own.is_some_and(|(_, _, mode, length)| {
            length <= largest
                && own == found(fs::symlink_metadata(&self.path))
                && fs::metadata(database).is_ok_and(|database| permissions(database.mode()) == permissions(mode))
        });
        if same {
            self.bytes = HEADER_BYTES;
            self.last = Txid::ZERO;
            self.covers = 0;
        }
        same
    }

    /// Appends transactions. Frames that were to be read from the WAL are read from here afterwards.
    pub(crate) fn append(&mut self, transactions: &[Arc<Transaction>]) -> io::Result<()> {
        let in_memory = |transaction: &Arc<Transaction>| transaction.frames_in_memory().is_some();
        for alike in transactions.chunk_by(|one, other| in_memory(one) == in_memory(other)) {
            if alike.first().is_some_and(in_memory) {
                alike
                    .chunks(AT_ONCE)
                    .try_for_each(|part| self.append_from_memory(part))?;
            } else {
                alike
                    .iter()
                    .try_for_each(|transaction| self.append_from_wal(transaction))?;
            }
        }
        Ok(())
    }

    fn append_from_memory(&mut self, transactions: &[Arc<Transaction>]) -> io::Result<()> {
        let records: Vec<_> = transactions.iter().map(|transaction| encode(transaction)).collect();
        let frames = transactions
            .iter()
            .map(|transaction| transaction.frames_in_memory().unwrap_or_default());
        let mut parts: Vec<IoSlice<'_>> = records
            .iter()
            .zip(frames)
            .flat_map(|(record, frames)| [IoSlice::new(record), IoSlice::new(frames)])
            .collect();
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        write_all_vectored_at(&self.file, &mut parts, self.bytes)?;
        self.bytes += bytes;
        self.last = transactions.last().map_or(self.last, |transaction| transaction.txid);
        Ok(())
    }

    fn append_from_wal(&mut self, transaction: &Transaction) -> io::Result<()> {
        let at = self.bytes + RECORD_BYTES as u64;
        transaction.copy_frames(&self.file, at)?;
        self.file.write_all_at(&encode(transaction), self.bytes)?;
        transaction.frames_moved_to(&self.file, at);
        self.bytes = at + transaction.wal_bytes();
        self.last = transaction.txid;
        Ok(())
    }

    /// Nothing in it is needed any more.
    pub(crate) fn remove(self) {
        // A file that stays is told from a useful one by its content.
        let _ = fs::remove_file(&self.path);
    }
}

/// The file's own place moves; everything else says where it reads and writes.
fn write_all_vectored_at(mut file: &File, mut parts: &mut [IoSlice<'_>], at: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match file.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The transactions behind `from` up to `to`, if the file has all of them, and they lead from one to the other.
pub(crate) fn load(database: &Path, from: Mark, to: Mark) -> Option<Vec<Transaction>> {
    let file = Arc::new(File::open(path_for(database)).ok()?);
    let length = file.metadata().ok()?.len();
    let mut magic = [0; MAGIC.len()];
    file.read_exact_at(&mut magic, 0).ok()?;
    if magic != MAGIC {
        return None;
    }
    let mut at = HEADER_BYTES;
    let mut found: Vec<Transaction> = Vec::new();
    let mut end = from;
    while end.txid < to.txid {
        let mut record = [0; RECORD_BYTES];
        file.read_exact_at(&mut record, at).ok()?;
        let frames_at = at + RECORD_BYTES as u64;
        let transaction = decode(&record, &file, frames_at)?;
        at = frames_at.checked_add(transaction.wal_bytes())?;
        if at > length {
            return None;
        }
        if transaction.txid <= from.txid {
            continue;
        }
        // Behind a WAL's first frame the place before is known; another WAL may begin only with its first.
        let follows = transaction.start == end.position || transaction.start.frame == 0;
        if transaction.txid != end.txid.next() || !follows {
            return None;
        }
        end = Mark {
            txid: transaction.txid,
            position: transaction.end,
        };
        found.push(transaction);
    }
    (end == to).then_some(found)
}

fn encode(transaction: &Transaction) -> [u8; RECORD_BYTES] {
    let mut words = Vec::with_capacity(RECORD_BYTES);
    words.extend_from_slice(&transaction.txid.0.to_le_bytes());
    words.extend_from_slice(&transaction.committed_at.0.to_le_bytes());
    words.extend_from_slice(&transaction.page_size.get().to_le_bytes());
    words.extend_from_slice(&transaction.page_count.to_le_bytes());
    for place in [transaction.start, transaction.end] {
        let Position { salts, frame, checksum } = place;
        for word in [salts.0, salts.1, frame, checksum[0], checksum[1]] {
            words.extend_from_slice(&word.to_le_bytes());
        }
    }
    words.extend_from_slice(&u32::from(transaction.big_endian).to_le_bytes());
    words.extend_from_slice(&[0; 8]);
    let crc = crc32fast::hash(&words);
    words.extend_from_slice(&crc.to_le_bytes());
    let mut record = [0; RECORD_BYTES];
    record.copy_from_slice(&words);
    record
}

fn decode(record: &[u8; RECORD_BYTES], file: &Arc<File>, frames_at: u64) -> Option<Transaction> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if crc32fast::hash(&record[..RECORD_BYTES - 4]) != word(RECORD_BYTES - 4) {
        return None;
    }
    let place = |at: usize| Position {
        salts: Salts(word(at), word(at + 4)),
        frame: word(at + 8),
        checksum: [word(at + 12), word(at + 16)],
    };
    let (start, end, page_size) = (place(24), place(44), PageSize::new(word(16))?);
    let count = end.frame.checked_sub(start.frame).filter(|count| *count > 0)?;
    let wal_bytes = u64::from(count) * crate::wal::frame_bytes(page_size);
    Some(Transaction {
        txid: Txid(long(0)),
        committed_at: UnixMillis(i64::from_le_bytes(long(8).to_le_bytes())),
        page_size,
        page_count: word(20),
        start,
        end,
        held: false,
        big_endian: word(64) != 0,
        frames: Transaction::frames_in_file(Arc::clone(file), frames_at, start, wal_bytes, page_size),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::types::Pgno;

    fn transactions(count: u64) -> Vec<Arc<Transaction>> {
        let size = PageSize::new(512).unwrap();
        let mut start = Position::default();
        (1..=count)
            .map(|txid| {
                let pages = [(Pgno::new(1).unwrap(), vec![txid as u8; 512])];
                if txid == 3 {
                    start = Position::default(); // Another WAL.
                }
                let transaction = Transaction::for_test(Txid(txid), size, 1, &pages, start);
                start = transaction.end;
                Arc::new(transaction)
            })
            .collect()
    }

    fn mark(transaction: &Transaction) -> Mark {
        Mark {
            txid: transaction.txid,
            position: transaction.end,
        }
    }

    fn written(transactions: &[Arc<Transaction>]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        fs::write(&database, b"").unwrap();
        let mut spill = Spill::create(&database).unwrap();
        spill.append(transactions).unwrap();
        spill.publish().unwrap();
        (folder, database)
    }

    fn contents(transactions: &[Arc<Transaction>]) -> Vec<Vec<u8>> {
        let content = |transaction: &Arc<Transaction>| {
            let mut bytes = Vec::new();
            transaction
                .for_each_page(|_, page| {
                    bytes.extend_from_slice(page);
                    Ok::<(), crate::transaction::FrameError>(())
                })
                .unwrap();
            bytes
        };
        transactions.iter().map(content).collect()
    }

    #[test]
    fn what_was_carried_over_comes_back() {
        let all = transactions(5);
        let (_folder, database) = written(&all);
        let loaded = load(&database, mark(&all[0]), mark(&all[4])).unwrap();
        let loaded: Vec<_> = loaded.into_iter().map(Arc::new).collect();
        assert_eq!(contents(&loaded), contents(&all[1..]));
        assert!(load(&database, mark(&all[4]), mark(&all[4])).unwrap().is_empty());
    }

    #[test]
    fn another_beginning_another_end_and_a_hole_are_refused() {
        let all = transactions(5);
        let (_folder, database) = written(&all);
        let mut other = mark(&all[3]);
        other.position.checksum[0] ^= 1;
        assert!(load(&database, mark(&all[0]), other).is_none());
        assert!(load(&database, other, mark(&all[4])).is_none());
        let mut without_2 = transactions(3);
        without_2.remove(1);
        let (_folder, holed) = written(&without_2);
        assert!(load(&holed, mark(&all[0]), mark(&all[2])).is_none());
    }

    #[test]
    fn a_file_that_ends_early_is_refused_wherever_it_ends() {
        let all = transactions(2);
        let (_folder, database) = written(&all);
        let path = path_for(&database);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(
                load(
                    &database,
                    Mark {
                        txid: Txid(0),
                        position: Position::default()
                    },
                    mark(&all[1])
                )
                .is_none(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn it_begins_again_in_the_same_file_with_what_comes_then() {
        let all = transactions(9);
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        fs::write(&database, b"").unwrap();
        let mut spill = Spill::create(&database).unwrap();
        spill.append(&all[..6]).unwrap();
        assert!(!spill.begin_again(&database, u64::MAX), "it has not got its name yet");
        spill.publish().unwrap();
        assert!(!spill.begin_again(&database, spill.bytes() - 1), "it is too large");
        let inode = fs::metadata(path_for(&database)).unwrap().ino();
        assert!(spill.begin_again(&database, u64::MAX));
        spill.append(&all[6..]).unwrap();
        spill.publish().unwrap();
        assert_eq!(fs::metadata(path_for(&database)).unwrap().ino(), inode);
        let loaded = load(&database, mark(&all[5]), mark(&all[8])).unwrap();
        let loaded: Vec<_> = loaded.into_iter().map(Arc::new).collect();
        assert_eq!(contents(&loaded), contents(&all[6..]));
        assert!(
            load(&database, mark(&all[2]), mark(&all[8])).is_none(),
            "those are gone"
        );
    }

    #[test]
    fn it_does_not_begin_again_under_a_reader_or_in_a_file_that_is_not_its_own_any_more() {
        let all = transactions(2);
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("app.db");
        fs::write(&database, b"").unwrap();
        let mut spill = Spill::create(&database).unwrap();
        spill.append(&all).unwrap();
        spill.publish().unwrap();
        let reader = Arc::clone(&spill.file);
        assert!(!spill.begin_again(&database, u64::MAX));
        drop(reader);
        let mode = fs::metadata(&database).unwrap().permissions();
        fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(spill.begin_again(&database, u64::MAX), mode.mode() & 0o777 == 0o600);
        fs::set_permissions(&database, mode).unwrap();
        fs::remove_file(path_for(&database)).unwrap();
        assert!(!spill.begin_again(&database, u64::MAX));
        fs::write(path_for(&database), b"another's").unwrap();
        assert!(!spill.begin_again(&database, u64::MAX));
    }

    #[test]
    fn many_are_written_as_they_are() {
        let all = transactions(2 * AT_ONCE as u64 + 1);
        let (_folder, database) = written(&all);
        let loaded = load(&database, mark(&all[0]), mark(&all[all.len() - 1])).unwrap();
        let loaded: Vec<_> = loaded.into_iter().map(Arc::new).collect();
        assert_eq!(contents(&loaded), contents(&all[1..]));
    }
}
