//! The first 100 bytes of a database file (<https://www.sqlite.org/fileformat2.html#the_database_header>).

use crate::base::{Code, FileRef};
use crate::types::PageSize;

const BYTES: usize = 100;
/// `PAGER_JOURNALMODE_WAL`'s file format, in the byte that readers look at.
const WAL_FORMAT: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DatabaseHeader([u8; BYTES]);

impl DatabaseHeader {
    /// `None` when the file has none: it is empty.
    ///
    /// # Safety
    ///
    /// `file` is the open database file of a connection, on its thread.
    pub(super) unsafe fn read(file: FileRef) -> Result<Option<DatabaseHeader>, Code> {
        let mut bytes = [0; BYTES];
        // SAFETY: as promised by the caller.
        let whole = unsafe { file.read(&mut bytes, 0)? };
        Ok(whole.then_some(DatabaseHeader(bytes)))
    }

    /// `None` for what SQLite would not open.
    pub(super) fn page_size(&self) -> Option<PageSize> {
        PageSize::from_header_field(u16::from_be_bytes([self.0[16], self.0[17]]))
    }

    /// The counter of changes is another one.
    pub(super) fn is_changed_since(&self, before: &DatabaseHeader) -> bool {
        self.0[24..28] != before.0[24..28]
    }

    /// So is the number of pages.
    pub(super) fn is_resized_since(&self, before: &DatabaseHeader) -> bool {
        self.0[28..32] != before.0[28..32]
    }

    /// The file is no database yet, though it has grown already: SQLite says how long it will be before it writes it.
    pub(super) fn is_blank(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Whoever reads the database opens its WAL.
    pub(super) fn is_wal(&self) -> bool {
        self.0[19] == WAL_FORMAT
    }

    /// Pages in the database, as `lockBtree` finds it: the file may be longer (`SQLITE_FCNTL_CHUNK_SIZE`), and the header's own number may be
    /// older than the last change.
    pub(super) fn page_count(&self, file_bytes: u64, page_size: PageSize) -> u32 {
        let in_file = u32::try_from(file_bytes.div_ceil(u64::from(page_size.get()))).unwrap_or(u32::MAX);
        let (changes, valid_for) = (&self.0[24..28], &self.0[92..96]);
        let in_header = u32::from_be_bytes([self.0[28], self.0[29], self.0[30], self.0[31]]);
        // A lock page at the end is not written.
        let fits = in_header <= in_file || (in_header - 1 == in_file && in_header == page_size.lock_page().get());
        if in_header > 0 && changes == valid_for && fits {
            in_header
        } else {
            in_file
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(count: u32, changes: u8, valid_for: u8) -> DatabaseHeader {
        let mut bytes = [0; BYTES];
        bytes[27] = changes;
        bytes[28..32].copy_from_slice(&count.to_be_bytes());
        bytes[95] = valid_for;
        DatabaseHeader(bytes)
    }

    #[test]
    fn the_header_tells_the_page_count_as_long_as_it_is_valid() {
        let size = PageSize::new(512).unwrap();
        assert_eq!(header(3, 7, 7).page_count(512 * 10, size), 3);
        assert_eq!(header(3, 8, 7).page_count(512 * 10, size), 10);
        assert_eq!(header(0, 7, 7).page_count(512 * 10 - 1, size), 10);
        assert_eq!(header(11, 7, 7).page_count(512 * 10, size), 10);
        let lock_page = size.lock_page().get();
        let before = u64::from(lock_page - 1) * 512;
        assert_eq!(header(lock_page, 7, 7).page_count(before, size), lock_page);
    }
}
