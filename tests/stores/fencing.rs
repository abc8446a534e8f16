//! Two writers: what the status says of a store, and that they notice each other also where the store does not keep them apart.

use replvfs::Txid;
use replvfs::format::{Generation, Key};
use replvfs::history::Target;
use replvfs::restore::RestoreOptions;
use replvfs::store::{Body, Created};
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{
    block_on, compare_pages, flush, open, plain_image, pragma_number, restore_txid, restore_with, status,
};

use crate::objects;
use crate::replication::{create, database, insert, restore_to_go_on, uri};
use crate::servers::Served;

pub(crate) fn told(served: &Served) {
    let replica = served.replica("told");
    let connection = create(&database(served, "told", "app.db"), &replica);
    insert(&connection, 100);
    flush(&connection);
    // A condition that holds alone is all that one process can see.
    let expected = if served.keeps_alone { "enforced" } else { "best-effort" };
    assert_eq!(status(&connection)["fencing"], expected);
}

/// Two that were at the same place of the history, and come to its next slot one after the other: no store makes the second one believe that the slot is its own.
pub(crate) fn one_after_the_other(served: &Served) {
    if served.name == "memory" {
        return; // Other processes have other memory.
    }
    let (first, second) = (
        database(served, "after", "first.db"),
        database(served, "after", "second.db"),
    );
    let replica = served.replica("after");
    let one = create(&first, &replica);
    insert(&one, 1_000);
    flush(&one);
    restore_to_go_on(&replica, &second);
    let mut other = SqlPeer::start(&uri(&second, &replica));
    // It knows then where the history ends.
    other.sql("SELECT * FROM t; PRAGMA replvfs_flush");
    insert(&one, 2_000);
    flush(&one);
    let (stored, txid) = (plain_image(&first), pragma_number(&one, "replvfs_txid"));
    other.sql("INSERT INTO t(b) VALUES (randomblob(3000))");
    // It is refused, or it goes on as a generation of its own, which leaves what was there as it is and replaces the first one.
    let goes_on = other.run("PRAGMA replvfs_flush") == "ok";
    insert(&one, 4_000);
    let flushed = one.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    assert!(flushed.is_err() == goes_on, "{goes_on} {flushed:?}");
    let out = database(served, "after", "out.db");
    let options = RestoreOptions {
        target: Target::Txid(Txid(txid.expect("a number"))),
        generation: Some(Generation(1)),
        ..RestoreOptions::default()
    };
    restore_with(&replica, &out, &options).expect("what was acknowledged is restored");
    compare_pages(&stored, &plain_image(&out)).expect("the first one's state");
    other.kill();
}

/// What a writer has stored is another's object of the same length, as it is for one of two that were both told that they have the slot.
pub(crate) fn replaced(served: &Served) {
    if matches!(served.name, "fs" | "memory") {
        return; // Which decide, and call no content by a name.
    }
    let (file, replica) = (database(served, "replaced", "app.db"), served.replica("replaced"));
    let connection = create(&file, &replica);
    for _ in 0..2 {
        insert(&connection, 1_000);
        flush(&connection);
    }
    let store = objects::open(served, "replaced");
    block_on(async {
        let listed = store.list(&Key::log_prefix(Generation(1))).await.expect("lists");
        let (newest, _) = *listed.last().expect("a segment");
        let mut other = store.read(&newest).await.expect("reads").to_vec();
        *other.last_mut().expect("a byte") ^= 1;
        store.delete(&newest).await.expect("deletes");
        let created = store.create(&newest, Body::Bytes(other.into())).await;
        assert_eq!(created.expect("creates"), Created::New);
    });
    insert(&connection, 1_000);
    let flushed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    let status = status(&connection);
    assert!(flushed.is_err() && status["fenced"] == true, "{status}");
    assert_eq!(status["fencing"], "best-effort");
}

/// A writer and a restored copy, both at the same place of the history, upload at the same moment.
pub(crate) fn two_writers(served: &Served) {
    if served.name == "memory" {
        return; // Other processes have other memory.
    }
    // On a busy machine one of them may see what the other has done before it comes to the gate.
    let met = (0..20).any(|round| writers_meet(served, &format!("two-{round}")));
    assert!(met, "the store never told both that they have the slot");
}

/// Whether they met, where it matters.
fn writers_meet(served: &Served, name: &str) -> bool {
    let (first, second) = (database(served, name, "first.db"), database(served, name, "second.db"));
    let replica = served.replica(name);
    let one = create(&first, &replica);
    insert(&one, 1_000);
    flush(&one);
    restore_to_go_on(&replica, &second);
    let mut other = SqlPeer::start(&uri(&second, &replica));
    // Where it matters both look before either writes, so both are told that they have the slot.
    let meet = served.name.starts_with("s3") && !served.decides;
    if let (Some(proxy), true) = (&served.proxy, meet) {
        proxy.let_them_meet(2);
    }
    let (mine, theirs) = both(&one, &mut other, (3_000, 3_000));
    assert!(mine || theirs, "at least one of them has the slot");
    let met = !meet || mine && theirs;
    // As soon as both have uploaded once more, one of them knows at least.
    let (mine, theirs) = match mine && theirs {
        true => both(&one, &mut other, (2_500, 2_500)),
        false => (mine, theirs),
    };
    assert!(!(mine && theirs), "both believe that they are the writer");
    if !mine {
        assert_eq!(status(&one)["fenced"], true);
    }
    // Whoever goes on has all that it was told in the replica; where nobody does, what is there is found to be broken, or is the state of one of them.
    let out = database(served, name, "out.db");
    if mine {
        restore_txid(&replica, &out, None);
        compare_pages(&plain_image(&first), &plain_image(&out)).expect("the first one's state");
    } else if theirs {
        other.sql("PRAGMA replvfs_flush");
        restore_txid(&replica, &out, None);
        other.kill();
        compare_pages(&plain_image(&second), &plain_image(&out)).expect("the second one's state");
    }
    if mine || theirs {
        let store = objects::open(served, name);
        let verified = block_on(verify(&store, &VerifyOptions::default())).expect("verifies");
        assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    }
    // The file of who was fenced is left alone by a process that comes after.
    drop(one);
    if !mine {
        let again = open(&uri(&first, &replica)).expect("opens");
        insert(&again, 10);
        assert!(again.query_row("PRAGMA replvfs_flush", [], |_| Ok(())).is_err());
    }
    met
}

/// Each commits a transaction of its own and flushes. Whether they were told that it is in the replica.
fn both(one: &rusqlite::Connection, other: &mut SqlPeer, (mine, theirs): (u32, u32)) -> (bool, bool) {
    std::thread::scope(|scope| {
        let theirs = scope.spawn(move || {
            other.sql(&format!("INSERT INTO t(b) VALUES (randomblob({theirs}))"));
            other.run("PRAGMA replvfs_flush") == "ok"
        });
        insert(one, mine);
        let mine = one.query_row("PRAGMA replvfs_flush", [], |_| Ok(())).is_ok();
        (mine, theirs.join().expect("the other writer"))
    })
}
