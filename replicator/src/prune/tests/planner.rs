//! The rules, one by one.

use super::super::plan::{ImageObject, Limits, Objects, SpanObject, Survey, plan};
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
        token: number.into(),
    }
}

fn image(generation: u64, txid: u64, day: i64) -> ImageObject {
    let key = Key::Image(Generation(generation), Txid(txid));
    ImageObject {
        object: dated(key, 100, day),
        txid: Txid(txid),
        taken_at: UnixMillis(day * DAY),
        is_broken: false,
    }
}

fn slot(generation: u64, first: u64, day: i64) -> Dated {
    dated(Key::Log(Generation(generation), Txid(first)), 1000, day)
}

/// With a slot for each ten transactions, one a day, and an image before some of them.
fn generation(number: u64, first: u64, days: std::ops::Range<i64>, images: &[i64]) -> Objects {
    let at = |day: i64| first + 10 * (day - days.start) as u64;
    Objects {
        strays: std::collections::HashSet::new(),
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

/// Each image names the chunk of its number.
fn survey(generations: Vec<Objects>, chunks: &[Dated], options: &PruneOptions) -> Survey {
    let mut survey = Survey::default();
    for image in generations.iter().flat_map(|generation| &generation.images) {
        survey.named.add(&[chunk(image.txid.0 as u8)]);
    }
    survey.generations = generations;
    let limits = Limits::of(&survey.generations, options);
    chunks.iter().for_each(|chunk| survey.chunk(&limits, *chunk));
    survey
}

fn of(generations: Vec<Objects>, now: i64) -> Vec<String> {
    names(&plan(&survey(generations, &[], &week(now)), &week(now)))
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
        let all: Vec<i64> = (0..20).collect();
        let mut one = generation(1, 1, 0..20, &all);
        one.images.iter_mut().for_each(|image| image.object.modified = None);
        one.slots.iter_mut().for_each(|slot| slot.modified = None);
        one
    };
    assert_eq!(of(vec![undated()], 4000)[..1], ["1 image 0"]);
    assert!(of(vec![undated()], 4000).contains(&"1 image 100".to_owned()));
    assert!(!of(vec![undated()], 4000).contains(&"1 image 110".to_owned()));
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

/// Of a clock, or of the database's rest: nobody can tell.
#[test]
fn a_jump_ends_no_window() {
    let jumped = |to: std::ops::Range<i64>| {
        let mut one = generation(1, 1, 0..3, &[0, 1, 2]);
        one.slots.extend(to.map(|day| slot(1, 31 + day as u64, day)));
        one
    };
    assert_eq!(of(vec![jumped(400..401)], 400), [] as [&str; 0]);
    assert_eq!(of(vec![jumped(400..406)], 900), [] as [&str; 0]);
    // On its far side time passes.
    assert_eq!(of(vec![jumped(400..408)], 900)[..2], ["1 image 0", "1 image 10"]);
    let survey = survey(vec![jumped(400..401)], &[], &week(400));
    let warning = Limits::of(&survey.generations, &week(400)).warning().unwrap();
    assert!(warning.contains("398 days"), "{warning}");
    // And what was sent a moment before it is still young.
    let sent = dated(Key::Chunk(chunk(99)), 10, 2);
    let survey = self::survey(vec![jumped(400..401)], &[sent], &week(400));
    assert_eq!(names(&plan(&survey, &week(400))), [] as [&str; 0]);
    let mut ahead = generation(1, 1, 0..3, &[0]);
    ahead.slots[1].modified = Some(UnixMillis(400 * DAY));
    let survey = self::survey(vec![ahead], &[sent], &week(2));
    assert_eq!(names(&plan(&survey, &week(2))), [] as [&str; 0]);
}

#[test]
fn the_newest_image_stays_however_old_it_is() {
    let mut one = generation(1, 1, 0..3, &[0, 2]);
    one.slots.extend((400..410).map(|day| slot(1, 31 + day as u64, day)));
    assert_eq!(of(vec![one], 410), ["1 image 0", "1 slot 11"]);
    // Also with a branch that has no image.
    let two = generation(2, 31, 399..410, &[]);
    assert_eq!(
        of(vec![generation(1, 1, 0..3, &[0, 2]), two], 410),
        ["1 image 0", "1 slot 1", "1 slot 11"]
    );
}

/// Its end could not be read when another generation began, so it has no seal, and its writer was not told.
#[test]
fn a_generation_that_may_be_written_yet_is_not_out() {
    let new = || generation(2, 51, 5..20, &[5, 15]);
    let old = |last| generation(1, 1, 0..last, &[0, 3]);
    let is_out = |deletions: Vec<String>| deletions.contains(&"1 image 30".to_owned());
    assert!(is_out(of(vec![sealed(old(19), 191), new()], 19)));
    assert!(!is_out(of(vec![old(19), new()], 19)));
    // It has its base all the same.
    assert_eq!(of(vec![old(19), new()], 19)[0], "1 image 0");
    assert!(!is_out(of(vec![old(13), new()], 19)));
    assert!(is_out(of(vec![old(12), new()], 19)));
}

#[test]
fn an_image_that_is_not_whole_is_no_base() {
    let with = |broken: &[usize]| {
        let mut one = generation(1, 1, 0..20, &[0, 5, 10, 15]);
        broken.iter().for_each(|at| one.images[*at].is_broken = true);
        let mut deletions = of(vec![one], 19);
        deletions.retain(|name| name.contains("image"));
        deletions
    };
    assert_eq!(with(&[]), ["1 image 0", "1 image 50"]);
    assert_eq!(with(&[2]), ["1 image 0"]);
    assert_eq!(with(&[0, 1]), ["1 image 0", "1 image 50"]);
    assert_eq!(with(&[1, 2, 3]), [] as [&str; 0]);
    // Nor is it what a newer generation is restored from.
    let mut new = generation(2, 51, 5..20, &[5]);
    new.images[0].is_broken = true;
    let old = sealed(generation(1, 1, 0..5, &[0]), 51);
    assert_eq!(of(vec![old, new], 19), [] as [&str; 0]);
}

#[test]
fn a_span_goes_when_a_larger_one_on_the_way_says_the_same() {
    let span = |first: u64, last: u64, day| SpanObject {
        object: dated(Key::Span(Generation(1), Txid(first), Txid(last)), 10, day),
        last: Txid(last),
        segments: (first..last).step_by(10).map(Txid).collect(),
    };
    let with = |spans: &[SpanObject]| {
        let mut one = generation(1, 1, 0..12, &[0]);
        one.slots.drain(1..8);
        one.spans = spans.to_vec();
        of(vec![one], 12)
    };
    let path = |first: u64, last: u64| Key::Span(Generation(1), Txid(first), Txid(last)).path();
    let small = [span(1, 40, 5), span(41, 80, 5)];
    assert_eq!(with(&small), [] as [&str; 0]);
    let large = |day| [&small[..], &[span(1, 80, day)]].concat();
    assert_eq!(with(&large(8)), [path(1, 40), path(41, 80)]);
    assert_eq!(with(&large(11)), [] as [&str; 0], "somebody may be reading");
    // Of another merger: together they say the same, and each goes in its order.
    let mut two = vec![span(1, 50, 5), span(51, 80, 5), span(41, 60, 5)];
    assert_eq!(with(&two), [path(41, 60)]);
    // Not when it cannot be read what it stands for.
    two[2].segments.clear();
    assert_eq!(with(&two), [] as [&str; 0]);
}

#[test]
fn chunks_go_when_no_image_names_them_and_their_making_is_over() {
    let days = [(0, 0), (150, 15), (7, 16), (8, 17), (9, 19), (10, 16), (11, 18)];
    let mut all: Vec<Dated> = days
        .iter()
        .map(|(n, day)| dated(Key::Chunk(chunk(*n)), 5, *day))
        .collect();
    // Sent for the same image as 11 was, which is not stored yet.
    let late = |number: u8| ChunkName {
        token: 11,
        ..chunk(number)
    };
    all[5].key = Key::Chunk(late(10));
    all.push(Dated {
        modified: None,
        ..dated(Key::Chunk(chunk(77)), 5, 0)
    });
    let left = |images: &[i64], is_damaged, options: &PruneOptions| {
        let mut one = generation(1, 1, 0..20, images);
        one.is_damaged = is_damaged;
        let deletions = plan(&survey(vec![one], &all, options), options).into_iter();
        let keys = deletions.map(|deletion| deletion.key);
        keys.filter(|key| matches!(key, Key::Chunk(_))).collect::<Vec<_>>()
    };
    let key = |number| Key::Chunk(chunk(number));
    // The image at 0 is left as long as that at 15 is in the window.
    assert_eq!(left(&[0, 15], false, &week(19)), [key(7), key(8)]);
    let short = PruneOptions {
        retention: Retention::For(Duration::from_secs(86_400)),
        ..week(19)
    };
    // Another image may be made after it while it goes.
    assert_eq!(left(&[0, 15], false, &short), [key(7), key(8)]);
    assert_eq!(left(&[15], false, &short), [key(0), key(7), key(8)]);
    assert_eq!(left(&[0, 15], true, &short), []);
    assert_eq!(left(&[], false, &short), []);
}
