//! Retention that deletes while a restore reads.

use std::sync::Once;

use super::*;

/// An image that appears, and what goes as soon as the image before it was read.
async fn replica() -> (Replica, impl Fn() + Send + Sync + 'static) {
    let mut replica = Replica::new(512, 3, 77).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let mut deleted = vec![Key::Image(Generation(1), Txid(0))];
    deleted.push(replica.segment(2).await);
    deleted.push(replica.segment(1).await);
    replica.image().await;
    let image = replica.path(Key::Image(Generation(1), Txid(3)));
    let manifest = std::fs::read(&image).unwrap();
    std::fs::remove_file(&image).unwrap();
    replica.segment(3).await;
    let deleted: Vec<_> = deleted.into_iter().map(|key| replica.path(key)).collect();
    let happens = move || {
        std::fs::write(&image, &manifest).unwrap();
        deleted.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    };
    (replica, happens)
}

fn meanwhile(target: Target, happens: impl Fn() + Send + Sync + 'static) -> RestoreOptions {
    let once = Once::new();
    RestoreOptions {
        target,
        progress: Some(Arc::new(move |progress| {
            if progress.image_bytes > 0 {
                once.call_once(&happens);
            }
        })),
        ..RestoreOptions::default()
    }
}

#[tokio::test]
async fn a_restore_goes_on_by_what_is_there_now() {
    for target in [Target::Newest, Target::Txid(Txid(5))] {
        let (replica, happens) = replica().await;
        let (restored, bytes) = replica.restore_with(meanwhile(target, happens)).await.unwrap();
        let txid = if target == Target::Newest { 6 } else { 5 };
        assert_eq!(restored.txid.0, txid);
        assert!(bytes == replica.states[&(1, txid)]);
    }
}

#[tokio::test]
async fn a_point_that_was_pruned_meanwhile_is_said_to_be() {
    for target in [Target::Txid(Txid(2)), Target::At(committed_at(2))] {
        let (replica, happens) = replica().await;
        let error = replica.restore_with(meanwhile(target, happens)).await.unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("pruned") && error.contains("image of transaction 3"),
            "{error}"
        );
    }
}

/// What is missing for another reason is so at the second look, too.
#[tokio::test]
async fn a_hole_stays_one() {
    let (replica, happens) = replica().await;
    let hole = replica.path(Key::Log(Generation(1), Txid(4)));
    let happens = move || {
        happens();
        std::fs::remove_file(&hole).unwrap();
    };
    let mut with_more = replica;
    with_more.segment(1).await;
    let error = with_more
        .restore_with(meanwhile(Target::Newest, happens))
        .await
        .unwrap_err();
    let key = Key::Log(Generation(1), Txid(4)).path();
    assert!(error.to_string().contains(&key), "{error}");
}
