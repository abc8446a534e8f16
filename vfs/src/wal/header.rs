//! The WAL's header and frame headers, and the checksum that chains them.

use crate::types::{PageSize, Pgno, Position, Salts};

/// Bytes of the WAL header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of the header before each page.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The last bit of the magic tells the byte order of the checksums, not of the fields.
pub(super) const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
/// `WAL_MAX_VERSION`.
pub(super) const VERSION: u32 = 3_007_000;

/// Bytes of a frame: its header and one page.
#[must_use]
pub fn frame_bytes(page_size: PageSize) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(page_size.get())
}

/// Where frame `frame` (from 1) starts in the WAL file.
#[must_use]
pub fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    HEADER_BYTES as u64 + u64::from(frame.saturating_sub(1)) * frame_bytes(page_size)
}

/// The big-endian number at `at`. Callers index inside arrays of fixed size.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A WAL header whose own checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Bytes a page.
    pub page_size: PageSize,
    /// What every frame must carry.
    pub salts: Salts,
    /// The header's checksum, which the first frame continues.
    pub checksum: [u32; 2],
    /// Whether checksums are computed over big-endian words.
    pub big_endian: bool,
}

impl WalHeader {
    /// `None` when this is not the header of a WAL that SQLite would use.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<WalHeader> {
        let big_endian = match be32(bytes, 0) {
            MAGIC_LITTLE => false,
            MAGIC_BIG => true,
            _ => return None,
        };
        let checksum = checksum(big_endian, &bytes[..24], [0, 0]);
        if be32(bytes, 4) != VERSION || checksum != [be32(bytes, 24), be32(bytes, 28)] {
            return None;
        }
        Some(WalHeader {
            page_size: PageSize::new(be32(bytes, 8))?,
            salts: Salts(be32(bytes, 16), be32(bytes, 20)),
            checksum,
            big_endian,
        })
    }

    /// The place behind this header.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            salts: self.salts,
            frame: 0,
            checksum: self.checksum,
        }
    }
}

/// The header of a frame, as its bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that follows.
    pub pgno: Pgno,
    /// Pages in the database after this commit; 0 when the frame ends no transaction.
    pub commit_page_count: u32,
    /// Copied from the WAL header.
    pub salts: Salts,
    /// Of everything up to and with this frame.
    pub checksum: [u32; 2],
}

impl FrameHeader {
    /// `None` when the page number is 0.
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<FrameHeader> {
        Some(FrameHeader {
            pgno: Pgno::new(be32(bytes, 0))?,
            commit_page_count: be32(bytes, 4),
            salts: Salts(be32(bytes, 8), be32(bytes, 12)),
            checksum: [be32(bytes, 16), be32(bytes, 20)],
        })
    }
}

/// SQLite's cumulative checksum (`walChecksumBytes`). `bytes` is a multiple of 8 long; what is over does not count.
///
/// Each step needs the sums of the one before, so a processor would wait for each addition. The sums are linear in what they begin with: four parts are
/// added up beside each other, from zero, and put together.
#[must_use]
pub(crate) fn checksum(big_endian: bool, bytes: &[u8], seed: [u32; 2]) -> [u32; 2] {
    if big_endian {
        sums(bytes, seed, u32::from_be_bytes)
    } else {
        sums(bytes, seed, u32::from_le_bytes)
    }
}

/// Fewer bytes are not worth the four parts.
const PARTS_FROM: usize = 256;

fn sums(bytes: &[u8], seed: [u32; 2], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    let step = |[s1, s2]: [u32; 2], pair: &[u8; 8]| {
        let [a, b, c, d, e, f, g, h] = *pair;
        let s1 = s1.wrapping_add(word([a, b, c, d])).wrapping_add(s2);
        [s1, s2.wrapping_add(word([e, f, g, h])).wrapping_add(s1)]
    };
    let (pairs, _) = bytes.as_chunks::<8>();
    let part = if bytes.len() < PARTS_FROM { 0 } else { pairs.len() / 4 };
    let (first, rest) = pairs.split_at(part);
    let (second, rest) = rest.split_at(part);
    let (third, rest) = rest.split_at(part);
    let (fourth, rest) = rest.split_at(part);
    let mut of = [seed, [0; 2], [0; 2], [0; 2]];
    for (((a, b), c), d) in first.iter().zip(second).zip(third).zip(fourth) {
        of = [step(of[0], a), step(of[1], b), step(of[2], c), step(of[3], d)];
    }
    let steps = Steps::of(part);
    let put_together = |before, part: [u32; 2]| {
        let [s1, s2] = steps.behind(before);
        [s1.wrapping_add(part[0]), s2.wrapping_add(part[1])]
    };
    let sum = of.into_iter().reduce(put_together).unwrap_or(seed);
    rest.iter().fold(sum, step)
}

/// What some steps over zeros make of two sums: a power of the matrix 1 1 / 1 2 that is one step. All powers are of the form p q / q p+q.
#[derive(Clone, Copy)]
struct Steps(u32, u32);

impl Steps {
    fn of(mut count: usize) -> Steps {
        let (mut power, mut all) = (Steps(1, 1), Steps(1, 0));
        while count > 0 {
            if count % 2 == 1 {
                all = all.and(power);
            }
            power = power.and(power);
            count /= 2;
        }
        all
    }

    fn and(self, Steps(r, s): Steps) -> Steps {
        let Steps(p, q) = self;
        let (pr, qs) = (p.wrapping_mul(r), q.wrapping_mul(s));
        let cross = p.wrapping_mul(s).wrapping_add(q.wrapping_mul(r));
        Steps(pr.wrapping_add(qs), cross.wrapping_add(qs))
    }

    fn behind(self, [s1, s2]: [u32; 2]) -> [u32; 2] {
        let Steps(p, q) = self;
        let (qs1, qs2) = (q.wrapping_mul(s1), q.wrapping_mul(s2));
        [
            p.wrapping_mul(s1).wrapping_add(qs2),
            qs1.wrapping_add(p.wrapping_mul(s2)).wrapping_add(qs2),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As SQLite writes it down.
    fn one_after_another(big_endian: bool, bytes: &[u8], [mut s1, mut s2]: [u32; 2]) -> [u32; 2] {
        for pair in bytes.chunks_exact(8) {
            let word = |at: usize| {
                let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
                if big_endian {
                    u32::from_be_bytes(bytes)
                } else {
                    u32::from_le_bytes(bytes)
                }
            };
            s1 = s1.wrapping_add(word(0)).wrapping_add(s2);
            s2 = s2.wrapping_add(word(4)).wrapping_add(s1);
        }
        [s1, s2]
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let random: Vec<u8> = (0..65_536 / 4).flat_map(|_| next().to_le_bytes()).collect();
        let highest = vec![0xff; 65_536];
        let lengths = (0..1100).chain([2048, 4096, 4104, 8192, 65_528, 65_536]);
        for length in lengths {
            for bytes in [&random[..length], &highest[..length]] {
                for seed in [[0, 0], [u32::MAX, u32::MAX], [next(), next()]] {
                    for big_endian in [false, true] {
                        assert_eq!(
                            checksum(big_endian, bytes, seed),
                            one_after_another(big_endian, bytes, seed),
                            "{length} bytes from {seed:?}"
                        );
                    }
                }
            }
        }
    }
}
