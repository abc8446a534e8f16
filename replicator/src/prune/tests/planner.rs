//! The rules, one by one.

use std::collections::HashSet;

use super::super::plan::{ImageObject, Objects, Survey, plan};
use super::*;
use crate::format::{ChunkHash, ChunkName, Seal};
use crate::store::Dated;

const DAY: i64 = 86_400_000;

fn dated(key: Key, len: u64, day: i64) -> Dated {
    Dated {
        key,
        len,
        modified: Some(UnixMillis(day * DAY)),
    }
}

fn chunk(number: u8) -> ChunkName {
    ChunkName {
        hash: ChunkHash([number; 32]),
        token: 1,
    }
}

fn image(generation: u64, txid: u64, day: i64) -> ImageObject {
    let key = Key::Image(Generation(generation), Txid(txid));
    ImageObject {
        object: dated(key, 100, day),
        txid: Txid(txid),
        taken_at: UnixMillis(day * DAY),
        chunks: HashSet::from([chunk(txid as u8)]),
    }
}

fn slot(generation: u64, first: u64, day: i64) -> Dated {
    dated(Key::Log(Generation(generation), Txid(first)), 1000, day)
}

/// With a slot for each ten transactions, one a day, and an image before some of them.
fn generation(number: u64, first: u64, days: std::ops::Range<i64>, images: &[i64]) -> Objects {
    let at = |day: i64| first + 10 * (day - days.start) as u64;
    Objects {
        number: Generation(number),
        has_begun: true,
        is_damaged: false,
        first_slot: Txid(first),
        images: images.iter().map(|day| image(number, at(*day) - 1, *day)).collect(),
        slots: days.clone().map(|day| slot(number, at(day), day)).collect(),
        spans: Vec::new(),
    }
}

fn sealed(mut objects: Objects, slot_of_seal: u64) -> Objects {
    let mut seal = slot(objects.number.0, slot_of_seal, 0);
    seal.len = Seal::LEN as u64;
    objects.slots.push(seal);
    objects
}

fn week(now: i64) -> PruneOptions {
    PruneOptions::at(UnixMillis(now * DAY))
}

fn names(deletions: &[Deletion]) -> Vec<String> {
    let name = |deletion: &Deletion| match deletion.key {
        Key::Image(generation, txid) => format!("{} image {txid}", generation.0),
        Key::Log(generation, first) => format!("{} slot {first}", generation.0),
        key => key.path(),
    };
    deletions.iter().map(name).collect()
}

fn of(generations: Vec<Objects>, now: i64) -> Vec<String> {
    let survey = Survey {
        generations,
        chunks: Vec::new(),
    };
    names(&plan(&survey, &week(now)))
}

#[test]
fn the_newest_image_before_the_window_is_the_base() {
    let one = || generation(1, 1, 0..20, &[0, 5, 10, 15]);
    // The window begins 8 days ago, with the grace.
    assert_eq!(
        of(vec![one()], 19),
        [
            "1 image 0",
            "1 image 50",
            "1 slot 11",
            "1 slot 21",
            "1 slot 31",
            "1 slot 41",
            "1 slot 51",
            "1 slot 61",
            "1 slot 71",
            "1 slot 81",
            "1 slot 91"
        ]
    );
    assert_eq!(of(vec![one()], 12), [] as [&str; 0]);
    assert_eq!(of(vec![one()], 13)[..3], ["1 image 0", "1 slot 11", "1 slot 21"]);
}

#[test]
fn a_clock_that_is_ahead_or_behind_deletes_no_more() {
    let one = || generation(1, 1, 0..20, &[0, 5, 10, 15]);
    assert_eq!(of(vec![one()], 4000), of(vec![one()], 19));
    assert_eq!(of(vec![one()], 3), [] as [&str; 0]);
    // The store tells no time: then the images do.
    let undated = || {
        let mut one = one();
        one.images.iter_mut().for_each(|image| image.object.modified = None);
        one.slots.iter_mut().for_each(|slot| slot.modified = None);
        one
    };
    assert_eq!(of(vec![undated()], 4000)[..1], ["1 image 0"]);
    assert!(!of(vec![undated()], 4000).contains(&"1 image 50".to_owned()));
}

#[test]
fn a_writer_whose_clock_was_wrong_loses_nothing_in_the_window() {
    // Behind: everything seems to be of long ago.
    let mut behind = generation(1, 1, 0..20, &[0, 5, 10, 15]);
    behind
        .images
        .iter_mut()
        .for_each(|image| image.taken_at = UnixMillis(0));
    assert_eq!(of(vec![behind], 19)[..2], ["1 image 0", "1 image 50"]);
    // Ahead, for a while: the newest one that is out counts.
    let mut ahead = generation(1, 1, 0..20, &[0, 5, 10, 15]);
    ahead.images[1].taken_at = UnixMillis(4000 * DAY);
    assert_eq!(of(vec![ahead], 19)[..2], ["1 image 0", "1 image 50"]);
}

#[test]
fn a_generation_is_out_when_a_later_one_began_before_the_window() {
    let old = || sealed(generation(1, 1, 0..5, &[0, 3]), 51);
    let new = || generation(2, 51, 5..20, &[5, 15]);
    let deletions = of(vec![old(), new()], 19);
    assert_eq!(
        deletions,
        [
            "1 image 0",
            "1 image 30",
            "1 slot 1",
            "1 slot 11",
            "1 slot 21",
            "1 slot 31",
            "1 slot 41"
        ]
    );
    // Not yet: it has its base, and its first slot may go, since another generation has begun.
    assert_eq!(
        of(vec![old(), new()], 12),
        ["1 image 0", "1 slot 1", "1 slot 11", "1 slot 21"]
    );
    // What began later cannot be restored.
    let mut empty = generation(2, 51, 5..20, &[]);
    assert_eq!(
        of(vec![old(), empty.clone()], 19),
        ["1 image 0", "1 slot 1", "1 slot 11", "1 slot 21"]
    );
    empty.has_begun = false;
    assert_eq!(of(vec![old(), empty], 19), ["1 image 0", "1 slot 11", "1 slot 21"]);
}

#[test]
fn the_newest_image_stays_however_old_it_is() {
    let mut one = generation(1, 1, 0..3, &[0, 2]);
    one.slots.push(slot(1, 31, 400));
    assert_eq!(of(vec![one], 400), ["1 image 0", "1 slot 11"]);
    // Also with a branch that has no image.
    let two = generation(2, 31, 399..400, &[]);
    assert_eq!(
        of(vec![generation(1, 1, 0..3, &[0, 2]), two], 399),
        ["1 image 0", "1 slot 1", "1 slot 11"]
    );
}

#[test]
fn chunks_go_when_no_image_that_is_left_names_them_and_they_are_old() {
    let survey = |is_damaged| {
        let mut one = generation(1, 1, 0..20, &[0, 15]);
        one.is_damaged = is_damaged;
        let chunks = [(0, 0), (150, 15), (7, 17), (8, 18), (9, 19)];
        let mut chunks: Vec<Dated> = chunks
            .iter()
            .map(|(n, day)| dated(Key::Chunk(chunk(*n)), 5, *day))
            .collect();
        chunks.push(Dated {
            modified: None,
            ..dated(Key::Chunk(chunk(77)), 5, 0)
        });
        Survey {
            generations: vec![one],
            chunks,
        }
    };
    let chunks = |deletions: Vec<Deletion>| {
        let names = deletions.into_iter().map(|deletion| deletion.key);
        names.filter(|key| matches!(key, Key::Chunk(_))).collect::<Vec<_>>()
    };
    let key = |number| Key::Chunk(chunk(number));
    // The image at 0 is left as long as that at 15 is in the window.
    assert_eq!(chunks(plan(&survey(false), &week(19))), [key(7), key(8)]);
    let short = PruneOptions {
        retention: Retention::For(Duration::from_secs(86_400)),
        ..week(19)
    };
    assert_eq!(chunks(plan(&survey(false), &short)), [key(0), key(7), key(8)]);
    assert_eq!(chunks(plan(&survey(true), &short)), []);
}
