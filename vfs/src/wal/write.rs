//! A WAL of our own: the same bytes as SQLite would write. Owns the chain; leaves to the caller where they go.

use crate::types::{PageSize, Pgno, Position, Salts};

use super::header::{FRAME_HEADER_BYTES, HEADER_BYTES, MAGIC_LITTLE, VERSION, checksum};

/// Writes a WAL from its start, a frame at a time.
#[derive(Debug, Clone)]
pub struct WalWriter {
    page_size: PageSize,
    header: [u8; HEADER_BYTES],
    position: Position,
}

impl WalWriter {
    /// A WAL without frames. The salts must be those of no other WAL that ever was beside the database: random ones.
    #[must_use]
    pub fn new(page_size: PageSize, salts: Salts) -> WalWriter {
        let mut header = [0; HEADER_BYTES];
        let fields = [MAGIC_LITTLE, VERSION, page_size.get(), 0, salts.0, salts.1];
        put(&mut header, &fields);
        let sum = checksum(false, &header[..24], [0, 0]);
        put(&mut header[24..], &sum);
        WalWriter {
            page_size,
            header,
            position: Position {
                salts,
                frame: 0,
                checksum: sum,
            },
        }
    }

    /// What the file begins with.
    #[must_use]
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        self.header
    }

    /// What stands before the next page. `commit_page_count`: pages in the database, if this frame ends a transaction; else 0.
    ///
    /// # Panics
    ///
    /// When the page is not one long.
    #[must_use]
    pub fn frame(&mut self, pgno: Pgno, commit_page_count: u32, page: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
        assert_eq!(page.len(), self.page_size.as_usize(), "a frame has one page");
        let mut header = [0; FRAME_HEADER_BYTES];
        let salts = self.position.salts;
        put(&mut header, &[pgno.get(), commit_page_count, salts.0, salts.1]);
        let sum = checksum(false, &header[..8], self.position.checksum);
        let sum = checksum(false, page, sum);
        put(&mut header[16..], &sum);
        self.position.frame += 1;
        self.position.checksum = sum;
        header
    }

    /// Behind the last frame.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
}

/// Big-endian, one after another.
fn put(bytes: &mut [u8], words: &[u32]) {
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
}
