//! What becomes of a replica's objects, and what is asked for then: for the targets that read one.

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use replvfs::format::Generation;
use replvfs::history::Target;
use replvfs_vfs::types::{Txid, UnixMillis};

use crate::mended;
use crate::specimen::{self, Specimen};

#[derive(Arbitrary, Debug)]
pub(crate) enum Damage {
    Gone(u8),
    Flipped(u8, u16, u8),
    Cut(u8, u16),
    Longer(u8, Vec<u8>),
    /// It stands under another's name.
    Moved(u8, u8),
    /// Under a name that nobody has given it.
    Named(String, Vec<u8>),
    /// What a writer that slept has put into a slot that was free again: all but what it follows fits.
    Stray(u8),
    /// Bytes are changed, and the checksums with them.
    Mended(u8, Vec<(u16, u8)>),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
pub(crate) enum Wanted {
    Newest,
    /// One of those that there are.
    One(u8),
    Txid(u8),
    At(u8),
}

pub(crate) fn whole() -> &'static Specimen {
    static WHOLE: OnceLock<Specimen> = OnceLock::new();
    WHOLE.get_or_init(specimen::replica)
}

/// What becomes of the objects, and whether a checksum fits that should not.
pub(crate) fn damaged(damage: &[Damage]) -> (Vec<(String, Vec<u8>)>, bool) {
    let objects = whole().objects.iter();
    let mut objects: Vec<_> = objects.map(|(key, bytes)| (key.path(), bytes.clone())).collect();
    let count = objects.len();
    let mut is_mended = false;
    for damage in damage.iter().take(6) {
        let which = |number: &u8| usize::from(*number) % count;
        match damage {
            Damage::Gone(object) => objects[which(object)].0.clear(),
            Damage::Flipped(object, at, mask) => {
                let bytes = &mut objects[which(object)].1;
                let at = usize::from(*at) % bytes.len().max(1);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= mask);
            }
            Damage::Cut(object, len) => objects[which(object)].1.truncate((*len).into()),
            Damage::Longer(object, more) => objects[which(object)].1.extend_from_slice(more),
            Damage::Moved(object, to) => {
                let bytes = objects[which(object)].1.clone();
                objects[which(to)].1 = bytes;
            }
            Damage::Stray(segment) => {
                let (key, bytes) = &whole().strays[usize::from(*segment) % whole().strays.len()];
                let path = key.path();
                objects
                    .iter_mut()
                    .filter(|(name, _)| *name == path)
                    .for_each(|(_, there)| there.clone_from(bytes));
            }
            Damage::Named(name, bytes) => objects.push((name.clone(), bytes.clone())),
            Damage::Mended(object, changes) => {
                let bytes = &mut objects[which(object)].1;
                for (at, byte) in changes.iter().take(16) {
                    let at = usize::from(*at) % bytes.len().max(1);
                    bytes.get_mut(at).into_iter().for_each(|there| *there = *byte);
                }
                mended::any(bytes);
                is_mended = true;
            }
        }
    }
    objects.retain(|(name, _)| is_name(name));
    (objects, is_mended)
}

/// As a store takes it.
fn is_name(name: &str) -> bool {
    let parts = || name.split('/');
    !name.is_empty() && parts().all(|part| !part.is_empty() && part != "." && part != ".." && part.trim() == part)
}

impl Wanted {
    /// One of the transactions that there are.
    pub(crate) fn place(self) -> (u64, u64) {
        let number = match self {
            Wanted::Newest => 0,
            Wanted::One(number) | Wanted::Txid(number) | Wanted::At(number) => number,
        };
        let states = &whole().states;
        *states
            .keys()
            .nth(usize::from(number) % states.len())
            .expect("one of them")
    }

    pub(crate) fn target(self) -> (Target, Option<Generation>) {
        match self {
            Wanted::Newest => (Target::Newest, None),
            Wanted::One(_) => {
                let (generation, txid) = self.place();
                (Target::Txid(Txid(txid)), Some(Generation(generation)))
            }
            Wanted::Txid(txid) => (Target::Txid(Txid(u64::from(txid) % 12)), None),
            Wanted::At(time) => (Target::At(UnixMillis(time.into())), None),
        }
    }
}
