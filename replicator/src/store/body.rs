//! What an object is created from, and how it is read in parts.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use opendal::Writer;

use super::Failure;
use crate::outside;

/// What an object is created from. Can be sent any number of times.
#[derive(Debug, Clone)]
pub enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// The first so many bytes of a file that nobody else moves through meanwhile.
    File(Arc<File>, u64),
}

impl Body {
    /// In bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File(_, len) => *len,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These bytes of it, both ends of which are at most its length.
    pub(super) async fn part(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            Body::Bytes(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Body::File(file, _) => {
                let file = Arc::clone(file);
                blocking(move || read_part(&file, range.start, range.end - range.start)).await
            }
        }
    }

    /// Sends all of it, `step` bytes at a time.
    pub(super) async fn send(&self, writer: &mut Writer, step: u64) -> Result<(), Failure> {
        let mut at = 0;
        while at < self.len() {
            let end = self.len().min(at + step);
            writer.write(self.part(at..end).await?).await?;
            at = end;
        }
        Ok(())
    }
}

/// A file's content from its start.
pub(super) fn body_reader(file: &File, len: u64) -> io::Result<impl Read> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.take(len))
}

fn read_part(file: &File, at: u64, len: u64) -> io::Result<Bytes> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut part = vec![0; len];
    file.read_exact_at(&mut part, at)?;
    Ok(part.into())
}

/// Runs `work` where it may block.
pub(super) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> {
    let handle = outside::blocking(work);
    async move {
        match handle.await {
            Ok(result) => result,
            Err(stopped) => Err(io::Error::other(stopped)),
        }
    }
}
