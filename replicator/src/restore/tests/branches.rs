//! Transactions that are not in the newest history.

use super::*;

/// Generation 1 has 0 to 6. Generation 2 left it at 2 and got 3 to 9, generation 3 left generation 1 at 4 and got 5.
async fn with_branches() -> Replica {
    let mut replica = Replica::new(512, 3, 31).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(4).await;
    replica.segment(2).await;
    replica.end_generation().await;
    for (left_at, transactions) in [(2, 7), (4, 1)] {
        replica.txid = left_at;
        let parent = Parent {
            generation: Generation(1),
            txid: Txid(left_at),
        };
        replica.begin_generation(Some(parent)).await;
        replica.image().await;
        replica.segment(transactions).await;
    }
    replica
}

#[tokio::test]
async fn what_one_branch_has_is_taken_from_it_with_a_warning() {
    let replica = with_branches().await;
    // The newest line is 0 to 3 of generation 1, then generation 3 from its image of 4 on.
    for (txid, generation) in [(0, 1), (3, 1), (4, 3), (5, 3)] {
        let (restored, bytes) = replica.restore(Target::Txid(Txid(txid))).await.unwrap();
        assert_eq!(restored.generation.0, generation, "{txid}");
        assert!(bytes == replica.states[&(generation, txid)], "{txid}");
        assert_eq!(restored.warnings, [] as [&str; 0], "{txid}");
    }
    for txid in 7..=9 {
        let (restored, bytes) = replica.restore(Target::Txid(Txid(txid))).await.unwrap();
        assert_eq!((restored.generation.0, restored.txid.0), (2, txid));
        assert!(bytes == replica.states[&(2, txid)], "{txid}");
        let warning = restored.warnings.concat();
        for says in [
            "is not in the newest history",
            "the newest transaction of generation 0000000000000003 is 5",
            "generation 0000000000000002 (transactions 2 to 9",
            "the last of 1970-01-01T00:00:00.09Z",
        ] {
            assert!(warning.contains(says), "{txid}: {warning}");
        }
    }
}

#[tokio::test]
async fn what_several_branches_have_must_be_named() {
    let replica = with_branches().await;
    let error = replica.restore(Target::Txid(Txid(6))).await.unwrap_err().to_string();
    for says in [
        "transaction 6 is not in the history",
        "generation 0000000000000001 (transactions 0 to 6",
        "generation 0000000000000002 (transactions 2 to 9",
        "name one of them",
    ] {
        assert!(error.contains(says), "{error}");
    }
    for generation in [1, 2] {
        let options = RestoreOptions {
            target: Target::Txid(Txid(6)),
            generation: Some(Generation(generation)),
            ..RestoreOptions::default()
        };
        let (_, bytes) = replica.restore_with(options).await.unwrap();
        assert!(bytes == replica.states[&(generation, 6)]);
    }
}

#[tokio::test]
async fn what_no_branch_has_is_not_there() {
    let replica = with_branches().await;
    let error = replica.restore(Target::Txid(Txid(10))).await.unwrap_err().to_string();
    assert!(
        error.contains("the newest transaction of generation 0000000000000003 is 5"),
        "{error}"
    );
    // A named one is not left for another.
    let options = RestoreOptions {
        target: Target::Txid(Txid(9)),
        generation: Some(Generation(3)),
        ..RestoreOptions::default()
    };
    assert!(replica.restore_with(options).await.is_err());
}

/// What a user is shown.
#[tokio::test]
async fn what_there_is_is_counted() {
    let mut replica = with_branches().await;
    replica.begin_generation(None).await;
    let history = History::open(&replica.store).await.unwrap();
    let objects = history.objects().await.unwrap();
    let counts = objects.by_kind().map(|(_, count)| count.objects);
    assert_eq!(counts[..4], [4, 0, 1, 3], "segments, spans, seals, images");
    assert_eq!(counts[5], 1 + 4);
    assert_eq!(objects.seals.bytes, Seal::LEN as u64);
    let chunks = std::fs::read_dir(replica.folder.path().join("chunk")).unwrap();
    assert_eq!(objects.chunks.objects, chunks.count() as u64);
    let reaches = history.reaches().await.unwrap();
    let told: Vec<_> = reaches
        .iter()
        .map(|reach| {
            let newest = reach.newest.map(|newest| (newest.txid.0, newest.at.0));
            let image = reach.image.map(|image| (image.txid.0, image.at.0));
            (image, newest, reach.sealed_at.is_some(), reach.log.objects)
        })
        .collect();
    assert_eq!(
        told,
        [
            (Some((0, 5)), Some((6, 60)), true, 2),
            (Some((2, 25)), Some((9, 90)), false, 1),
            (Some((4, 45)), Some((5, 50)), false, 1),
            (None, None, false, 0),
        ]
    );
    let left_by = [(Generation(2), Txid(2)), (Generation(3), Txid(4))];
    assert_eq!(reaches[0].left_by, left_by);
    let log: u64 = reaches.iter().map(|reach| reach.log.bytes).sum();
    assert_eq!(log, objects.segments.bytes);
}

/// What cannot be read might have it, too.
#[tokio::test]
async fn a_branch_is_not_taken_beside_one_that_is_damaged() {
    let replica = with_branches().await;
    let image = Key::Image(Generation(1), Txid(0));
    let mut bytes = std::fs::read(replica.path(image)).unwrap();
    bytes[9] ^= 1;
    std::fs::write(replica.path(image), bytes).unwrap();
    let error = replica.restore(Target::Txid(Txid(7))).await.unwrap_err().to_string();
    assert!(error.contains(&image.path()), "{error}");
}

/// Retention leaves a generation alone that is damaged, and goes on with the newer one.
#[tokio::test]
async fn a_time_that_was_pruned_is_not_taken_from_an_older_generation() {
    let mut replica = Replica::new(512, 3, 45).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(3).await;
    replica.end_generation().await;
    let parent = Parent {
        generation: replica.generation,
        txid: Txid(replica.txid),
    };
    replica.begin_generation(Some(parent)).await;
    replica.image().await;
    let first = Key::Image(replica.generation, Txid(replica.txid));
    replica.segment(4).await;
    replica.image().await;
    replica.check(Target::At(UnixMillis(52)), 2, 5).await;
    std::fs::remove_file(replica.path(first)).unwrap();
    let error = replica.restore(Target::At(UnixMillis(52))).await.unwrap_err();
    assert!(error.to_string().contains("pruned"), "{error}");
    replica.check(Target::At(UnixMillis(76)), 2, 7).await;
    replica.check(Target::Txid(Txid(2)), 1, 2).await;
}
