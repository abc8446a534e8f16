//! The names of the chunks that images name, in little memory.

use crate::format::ChunkName;
#[cfg(any(test, feature = "testing"))]
use crate::outside::simulated::{Rule, is_broken};

/// 17 bytes a name. Two names of which one is taken for the other keep a chunk that could go.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// Ascending.
    short: Vec<u128>,
    /// Whether each of them was seen in the store.
    seen: Vec<bool>,
}

fn short(name: &ChunkName) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&name.hash.0[..16]);
    // The token is in both halves: chunks of the same pages differ in nothing else.
    u128::from_le_bytes(bytes) ^ (u128::from(name.token) << 64 | u128::from(name.token))
}

impl Names {
    /// Forgets what was seen.
    pub(super) fn add(&mut self, names: &[ChunkName]) {
        #[cfg(any(test, feature = "testing"))]
        if is_broken(Rule::Named) {
            return;
        }
        self.short.extend(names.iter().map(short));
        self.short.sort_unstable();
        self.short.dedup();
        self.seen = Vec::new();
    }

    pub(super) fn contain(&self, name: &ChunkName) -> bool {
        self.short.binary_search(&short(name)).is_ok()
    }

    /// It is in the store. Returns whether it is named.
    pub(super) fn see(&mut self, name: &ChunkName) -> bool {
        let found = self.short.binary_search(&short(name));
        self.seen.resize(self.short.len(), false);
        if let Some(seen) = found.ok().and_then(|at| self.seen.get_mut(at)) {
            *seen = true;
        }
        found.is_ok()
    }

    pub(super) fn is_seen(&self, name: &ChunkName) -> bool {
        let found = self.short.binary_search(&short(name));
        found.is_ok_and(|at| self.seen.get(at) == Some(&true))
    }

    pub(super) fn all_are_seen(&self) -> bool {
        self.seen.len() == self.short.len() && self.seen.iter().all(|seen| *seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChunkHash;

    fn name(hash: u8, token: u64) -> ChunkName {
        ChunkName {
            hash: ChunkHash([hash; 32]),
            token,
        }
    }

    #[test]
    fn what_is_named_is_told_by_hash_and_token() {
        let mut names = Names::default();
        assert!(names.all_are_seen());
        names.add(&[name(3, 1), name(1, 1), name(1, 2)]);
        names.add(&[name(2, 1), name(3, 1)]);
        let all = [name(1, 1), name(1, 2), name(2, 1), name(3, 1)];
        assert!(all.iter().all(|name| names.contain(name)));
        assert!(!names.contain(&name(2, 2)) && !names.contain(&name(4, 1)));
        assert!(!names.see(&name(4, 1)) && !names.all_are_seen());
        for name in &all {
            assert!(!names.is_seen(name));
            assert!(names.see(name) && names.is_seen(name));
        }
        assert!(names.all_are_seen());
    }
}
