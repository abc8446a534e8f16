//! Why bytes cannot be decoded, or objects not be encoded. Says what is wrong inside an object; which object it is, is
//! added by whoever fetched it.

use std::io;

/// Why an object cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes are not what a writer wrote.
    #[error("the {part} is damaged: {problem}")]
    Damaged {
        /// The part of the object.
        part: &'static str,
        /// What does not fit.
        problem: String,
    },
    /// Another release wrote it.
    #[error("it has format version {found}, and this release of replvfs reads version {known}: use a newer release")]
    Version {
        /// The version in the object.
        found: u32,
        /// The version that is known.
        known: u32,
    },
    /// The object is no segment, but a seal that is not as long as one of this release.
    #[error("a seal ends the generation here, which this release of replvfs cannot read: use a newer release")]
    Seal,
    /// The caller of a writer asked for something that no reader would accept.
    #[error("the {part} cannot be written: {problem}")]
    Refused {
        /// The part of the object.
        part: &'static str,
        /// What does not fit.
        problem: String,
    },
    /// What the encoded bytes are written to failed.
    #[error("writing the encoded bytes failed: {0}")]
    Io(io::Error),
    /// The compressor failed: out of memory, or an unknown level.
    #[error("compression failed: {0}")]
    Compression(io::Error),
}

impl FormatError {
    pub(super) fn damaged(part: &'static str, problem: impl Into<String>) -> FormatError {
        FormatError::Damaged {
            part,
            problem: problem.into(),
        }
    }

    pub(super) fn refused(part: &'static str, problem: impl Into<String>) -> FormatError {
        FormatError::Refused {
            part,
            problem: problem.into(),
        }
    }
}
