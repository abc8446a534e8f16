//! The walk along a WAL: never panics, and never finds a commit in bytes that a changed byte should have cut off.

#![no_main]

use libfuzzer_sys::fuzz_target;
use replvfs_vfs::wal::{Commit, HEADER_BYTES, IndexHeader, Scan, WalHeader};

fn commits(wal: &[u8]) -> Vec<Commit> {
    let Some(header) = wal.first_chunk::<HEADER_BYTES>().and_then(WalHeader::decode) else {
        return Vec::new();
    };
    let mut scan = Scan::from_header(&header);
    let mut found = Vec::new();
    for frame in wal[HEADER_BYTES..].chunks(scan.frame_bytes()) {
        let Ok((_, page, commit)) = scan.step(frame) else { break };
        assert_eq!(page.len(), header.page_size.as_usize());
        found.extend(commit);
    }
    found
}

fuzz_target!(|data: &[u8]| {
    if let Some(copy) = data.first_chunk() {
        let _ = IndexHeader::decode(copy);
    }
    let whole = commits(data);
    // A prefix of a WAL has a prefix of its commits.
    let cut = data.len() / 2;
    let half = commits(&data[..cut]);
    assert_eq!(half[..], whole[..half.len()]);
});
