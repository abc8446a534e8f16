//! Images that cannot be used, with an older one before them from which the log leads on.

use super::*;

/// Images of 0, 3 and 6 of a log of segments with one transaction each, up to `last`.
async fn with_images(last: u64) -> Replica {
    let mut replica = Replica::new(512, 3, 61).await;
    replica.begin_generation(None).await;
    replica.image().await;
    for txid in 1..=last {
        replica.segment(1).await;
        if txid % 3 == 0 && txid <= 6 {
            replica.image().await;
        }
    }
    replica
}

fn image(txid: u64) -> Key {
    Key::Image(Generation(1), Txid(txid))
}

fn slot(first: u64) -> Key {
    Key::Log(Generation(1), Txid(first))
}

/// What may happen to an image, as far as anybody can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    Manifest,
    Chunk,
    ChunkGone,
}

const ALL: [Damage; 3] = [Damage::Manifest, Damage::Chunk, Damage::ChunkGone];

impl Replica {
    /// Returns what is named.
    fn break_image(&self, txid: u64, damage: Damage) -> Key {
        let chunk = chunk_of(&self.states[&(1, txid)], txid);
        let key = if damage == Damage::Manifest { image(txid) } else { chunk };
        let path = self.path(key);
        match damage {
            Damage::ChunkGone => std::fs::remove_file(path).unwrap(),
            _ => std::fs::write(path, b"not what it was").unwrap(),
        }
        key
    }

    async fn refused(&self, target: Target, key: Key) {
        let error = self.restore(target).await.unwrap_err();
        assert!(error.to_string().contains(&key.path()), "{target}: {error}");
    }
}

#[tokio::test]
async fn the_image_before_a_broken_one_is_taken_with_a_warning() {
    for damage in ALL {
        let replica = with_images(8).await;
        let whole = replica.restore(Target::Newest).await.unwrap().0;
        assert_eq!(whole.warnings, [] as [&str; 0]);
        let key = replica.break_image(6, damage);
        let targets = [Target::Newest, Target::Txid(Txid(6)), Target::Txid(Txid(7))];
        for (target, txid) in targets.into_iter().zip([8, 6, 7]) {
            let (restored, bytes) = replica.restore(target).await.unwrap();
            assert_eq!((restored.txid.0, restored.committed_at), (txid, committed_at(txid)));
            assert!(bytes == replica.states[&(1, txid)], "{damage:?}, {target}");
            let warning = restored.warnings.concat();
            for says in [key.path(), image(6).path(), image(3).path()] {
                assert!(warning.contains(&says), "{damage:?}, {target}: {warning}");
            }
        }
        // One before it does not need it.
        let (restored, _) = replica.restore(Target::Txid(Txid(5))).await.unwrap();
        assert_eq!(restored.warnings, [] as [&str; 0]);
        // Nor is one enough.
        let second = replica.break_image(3, damage);
        let (restored, bytes) = replica.restore(Target::Newest).await.unwrap();
        assert!(restored.txid.0 == 8 && bytes == replica.states[&(1, 8)]);
        let warning = restored.warnings.concat();
        assert!(
            warning.contains(&key.path()) && warning.contains(&second.path()),
            "{warning}"
        );
        // The first thing that is wrong is told, where nothing is left.
        replica.break_image(0, damage);
        replica.refused(Target::Newest, key).await;
        replica.refused(Target::Txid(Txid(4)), second).await;
    }
}

/// When it was taken tells where a time is; that cannot be known without it.
#[tokio::test]
async fn a_time_behind_a_broken_image() {
    for damage in ALL {
        let replica = with_images(8).await;
        let key = replica.break_image(6, damage);
        // The image was taken at 65.
        for (time, txid) in [(66, 6), (75, 7), (1_000, 8)] {
            let target = Target::At(UnixMillis(time));
            match damage {
                Damage::Manifest => replica.refused(target, key).await,
                _ => replica.check(target, 1, txid).await,
            }
        }
    }
}

/// With a clock that was set back, only the image has what was last at that time.
#[tokio::test]
async fn a_time_is_the_same_from_an_older_image() {
    let mut replica = with_images(4).await;
    let start = position(replica.frame);
    let mut commits: Vec<_> = (0..3).map(|_| replica.commit()).collect();
    commits
        .iter_mut()
        .for_each(|commit| commit.0.committed_at = UnixMillis(1_000));
    replica.seal(start, &commits).await;
    // Taken at 75, after the clock was set back.
    replica.image().await;
    let target = Target::At(UnixMillis(80));
    replica.check(target, 1, 7).await;
    replica.break_image(7, Damage::Chunk);
    replica.check(target, 1, 7).await;
}

/// An older image alone is an older state, and a log with a hole leads nowhere.
#[tokio::test]
async fn without_the_log_up_to_it_a_broken_image_is_an_error() {
    for damage in ALL {
        for last in [6, 8] {
            for gone in [4..=4, 5..=5, 6..=6, 4..=6, 1..=last, 4..=last, 6..=last] {
                let replica = with_images(last).await;
                for first in gone.clone() {
                    std::fs::remove_file(replica.path(slot(first))).unwrap();
                }
                let (restored, _) = replica.restore(Target::Newest).await.unwrap();
                assert_eq!(restored.txid.0, if *gone.end() == last { 6 } else { last });
                let key = replica.break_image(6, damage);
                for target in [Target::Newest, Target::Txid(Txid(6))] {
                    replica.refused(target, key).await;
                }
            }
        }
    }
}

/// Another generation has a transaction with that number, and is another history.
#[tokio::test]
async fn no_other_branch_is_taken_for_a_broken_image() {
    for damage in ALL {
        let mut replica = with_images(6).await;
        replica.end_generation().await;
        replica.txid = 2;
        let parent = Parent {
            generation: Generation(1),
            txid: Txid(2),
        };
        replica.begin_generation(Some(parent)).await;
        replica.image().await;
        replica.segment(1).await;
        replica.segment(3).await;
        replica.image().await;
        std::fs::remove_file(replica.path(Key::Log(Generation(2), Txid(4)))).unwrap();
        replica.check(Target::Txid(Txid(6)), 2, 6).await;
        let key = match damage {
            Damage::Manifest => Key::Image(Generation(2), Txid(6)),
            _ => chunk_of(&replica.states[&(2, 6)], 6),
        };
        match damage {
            Damage::ChunkGone => std::fs::remove_file(replica.path(key)).unwrap(),
            _ => std::fs::write(replica.path(key), b"not what it was").unwrap(),
        }
        replica.refused(Target::Txid(Txid(6)), key).await;
        replica.refused(Target::Newest, key).await;
    }
}

/// Every byte of an image, and of the log that stands in for it.
#[tokio::test]
async fn any_damage_beside_a_broken_image_gives_the_truth_or_is_named() {
    let replica = with_images(7).await;
    let broken = replica.break_image(6, Damage::Chunk);
    for key in [
        image(3),
        chunk_of(&replica.states[&(1, 3)], 3),
        slot(5),
        slot(7),
        image(6),
    ] {
        let truth = std::fs::read(replica.path(key)).unwrap();
        for at in 0..truth.len() {
            let mut damaged = truth.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(replica.path(key), &damaged).unwrap();
            match replica.restore(Target::Newest).await {
                Ok((restored, bytes)) => {
                    assert!(
                        restored.txid.0 == 7 && bytes == replica.states[&(1, 7)],
                        "{at} of {key}"
                    );
                    // Where the older image is broken there is one before it; the log can be replaced by nothing.
                    assert!(!matches!(key, Key::Log(..)), "{at} of {key}");
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(matches!(key, Key::Log(..)), "{at} of {key}: {error}");
                    assert!(error.contains(&key.path()) || error.contains(&broken.path()), "{error}");
                }
            }
        }
        std::fs::write(replica.path(key), truth).unwrap();
    }
}
