//! What the fuzz targets need of the inside. No part of what is promised.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::resume::Mark;
use crate::spill::{self, Spill};
use crate::transaction::Transaction;
use crate::wal;

/// Writes the file `<database>-replvfs-spill` with these transactions.
///
/// # Errors
///
/// When it cannot be written, or the database is not there.
pub fn write_spill(database: &Path, transactions: &[Arc<Transaction>]) -> io::Result<()> {
    let mut file = Spill::create(database)?;
    file.append(transactions)?;
    file.publish()
}

/// What a next process finds in that file of the transactions behind `from` up to `to`.
#[must_use]
pub fn load_spill(database: &Path, from: Mark, to: Mark) -> Option<Vec<Transaction>> {
    spill::load(database, from, to)
}

/// The checksum of the WAL and the wal-index, from the one before on.
#[must_use]
pub fn checksum(big_endian: bool, bytes: &[u8], sum: [u32; 2]) -> [u32; 2] {
    wal::checksum(big_endian, bytes, sum)
}
