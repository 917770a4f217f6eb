//! Every bit of every region of an image, flipped; and images that are damaged in worse ways.

use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape, SealedChunk};
use crate::base::prng::Prng;
use crate::format::batch::{Batch, BatchBuilder};
use crate::format::chunk;
use crate::format::record::Records;
use crate::limits::{DISK_ALIGN_BYTES, KIB};
use std::rc::Rc;

const NAME: ChunkName = ChunkName { queue: 7, chunk: 3, first_sequence: 100, end_sequence: 112 };
/// When the first batch was taken; each other one a millisecond after the one before.
const TIME_US: u64 = 1_700_000_000_000_000;
/// Records of each batch; together as many as [`NAME`] has messages.
const COUNTS: [u32; 4] = [3, 1, 5, 3];

fn seal(batches: &[Vec<u8>], name: ChunkName) -> SealedChunk {
    let shape = PoolShape {
        slab_bytes: 64 * KIB,
        class_bytes: vec![16 * KIB],
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
    assert!(pool.grow(0));
    let mut writer = pool.take(0).unwrap();
    for batch in batches {
        writer.append(&[batch]);
    }
    chunk::seal(writer, name)
}

/// Batches behind their prefixes.
fn batches() -> Vec<Vec<u8>> {
    let mut sequence = NAME.first_sequence;
    let mut batches = Vec::new();
    for (nth, &count) in COUNTS.iter().enumerate() {
        let mut builder = BatchBuilder::default();
        for record in 0..u64::from(count) {
            let body = format!("message {}", sequence + record);
            builder.push(0, b"", body.as_bytes());
        }
        let accepted_us = TIME_US + 1000 * nth as u64;
        let prefix = BatchPrefix { base_sequence: sequence, accepted_us };
        let mut bytes = prefix.encode().to_vec();
        bytes.extend_from_slice(builder.finish(0, 9, sequence));
        batches.push(bytes);
        sequence += u64::from(count);
    }
    assert_eq!(sequence, NAME.end_sequence);
    batches
}

fn image() -> Vec<u8> {
    seal(&batches(), NAME).image().to_vec()
}

/// Where each batch begins, and the end of the last.
fn starts() -> Vec<usize> {
    let mut at = CHUNK_HEADER_BYTES;
    let mut starts = vec![at];
    for batch in batches() {
        at += batch.len();
        starts.push(at);
    }
    starts
}

/// What a reader gets of a damaged image: ranges that are lost; checks that all else is as it was.
fn lost_of(mut image: Vec<u8>, check: u16) -> Option<Vec<Range<u64>>> {
    let image = &mut image;
    read_out(image, check)
}

fn read_out(image: &mut [u8], check: u16) -> Option<Vec<Range<u64>>> {
    let saved = match judge(image, image.len(), NAME, check) {
        Verdict::Whole { used_bytes } => Saved { used_bytes, lost: Vec::new() },
        Verdict::Another(_) => return None,
        Verdict::Damaged { .. } => salvage(image, NAME, check)?,
    };
    assert_eq!(ChunkHeader::decode(image).unwrap().name(), NAME);
    let verdict = judge(image, image.len(), NAME, check_of(image));
    assert_eq!(verdict, Verdict::Whole { used_bytes: saved.used_bytes });
    let mut sequence = NAME.first_sequence;
    for found in Batches::new(&image[CHUNK_HEADER_BYTES..saved.used_bytes]) {
        assert_eq!(found.prefix.base_sequence, sequence);
        if !saved.lost.iter().any(|lost| lost.contains(&sequence)) {
            let nth = (0..COUNTS.len()).find(|nth| range_of(*nth).start == sequence).unwrap();
            assert_eq!(found.prefix.accepted_us, TIME_US + 1000 * nth as u64);
        }
        for record in Records::new(Batch::decode(found.wire()).unwrap().records()) {
            if saved.lost.iter().any(|lost| lost.contains(&sequence)) {
                assert!(record.body.iter().all(|&byte| byte == 0));
            } else {
                assert_eq!(record.body, format!("message {sequence}").as_bytes());
            }
            sequence += 1;
        }
    }
    assert_eq!(sequence, NAME.end_sequence);
    Some(saved.lost)
}

#[test]
fn a_whole_image_is_taken_as_it_is() {
    let image = image();
    let used_bytes = *starts().last().unwrap();
    assert_eq!(judge(&image, image.len(), NAME, check_of(&image)), Verdict::Whole { used_bytes });
}

#[test]
fn a_flipped_bit_costs_the_batch_it_is_in_or_nothing() {
    let (image, starts) = (image(), starts());
    let check = check_of(&image);
    let end = *starts.last().unwrap();
    for bit in 0..image.len() * 8 {
        let at = bit / 8;
        let mut damaged = image.clone();
        damaged[at] ^= 1 << (bit % 8);
        let verdict = judge(&damaged, image.len(), NAME, check);
        if at >= end {
            assert_eq!(verdict, Verdict::Whole { used_bytes: end }, "bit {bit}, padding");
        } else {
            assert!(!matches!(verdict, Verdict::Whole { .. }), "bit {bit} went unseen");
        }
        let lost = read_out(&mut damaged, check);
        if at < CHUNK_HEADER_BYTES || at >= end {
            assert_eq!(lost, Some(vec![]), "bit {bit}, header or padding");
            continue;
        }
        let nth = starts.iter().rposition(|start| *start <= at).unwrap();
        let range = range_of(nth);
        let expected = match at - starts[nth] {
            // Magic, version, fragment flag, count, length, reserved: nobody knows what follows.
            20..=22 | 24..40 => None,
            _ => Some(vec![range]),
        };
        assert_eq!(lost, expected, "bit {bit} of batch {nth}, byte {}", at - starts[nth]);
    }
}

fn range_of(nth: usize) -> Range<u64> {
    let start = NAME.first_sequence + u64::from(COUNTS[..nth].iter().sum::<u32>());
    start..start + u64::from(COUNTS[nth])
}

#[test]
fn two_damaged_batches_cost_both() {
    let (image, starts) = (image(), starts());
    for (first, second) in [(0, 1), (0, 2), (1, 2), (2, 3), (0, 3)] {
        let mut damaged = image.clone();
        damaged[starts[first] + 75] ^= 4;
        damaged[starts[second] + 75] ^= 4;
        let both = range_of(first).start..range_of(second).end;
        let expected = match first + 1 == second {
            true => vec![both],
            false => vec![range_of(first), range_of(second)],
        };
        assert_eq!(lost_of(damaged, check_of(&image)), Some(expected));
    }
}

#[test]
fn any_damage_is_survived_and_nothing_wrong_is_delivered() {
    let (image, mut prng) = (image(), Prng::new(5));
    for _ in 0..20_000 {
        let mut damaged = image.clone();
        for _ in 0..1 + prng.below(4) {
            let at = prng.below(starts()[4] as u64) as usize;
            let end = (at + 1 + prng.below(64) as usize).min(damaged.len());
            let kind = prng.below(3);
            for byte in &mut damaged[at..end] {
                *byte =
                    if kind == 0 { prng.next_u64() as u8 } else { [0, 0xFF][kind as usize - 1] };
            }
        }
        // Each surviving message is checked there.
        lost_of(damaged, check_of(&image));
    }
}

#[test]
fn an_image_cut_short_is_lost_but_for_a_part_of_its_last_batch() {
    let (image, starts) = (image(), starts());
    let check = check_of(&image);
    for there in 0..image.len() {
        let verdict = judge(&image[..there], image.len(), NAME, check);
        assert!(matches!(verdict, Verdict::Damaged { .. }), "{there} bytes");
        let mut damaged = image[..there].to_vec();
        damaged.resize(image.len(), 0);
        // Without all heads nothing says that the front was written together with the rest.
        let lost = lost_of(damaged, check);
        let last = [range_of(3)];
        match there {
            _ if there >= starts[4] => assert_eq!(lost, Some(vec![])),
            _ if there >= starts[3] + BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES => {
                assert_eq!(lost.as_deref(), Some(&last[..]))
            }
            // The fields of the last head that a walk needs may be there, or not.
            _ if there > starts[3] => assert!(lost.is_none_or(|lost| lost == last)),
            _ => assert_eq!(lost, None, "{there} bytes"),
        }
    }
}

#[test]
fn another_chunk_is_no_chunk() {
    let check = check_of(&image());
    let names = [
        ChunkName { queue: 8, ..NAME },
        ChunkName { chunk: 4, ..NAME },
        ChunkName { first_sequence: 99, ..NAME },
        ChunkName { end_sequence: 113, ..NAME },
    ];
    for name in names {
        let image = seal(&batches(), name).image().to_vec();
        assert!(matches!(judge(&image, image.len(), NAME, check), Verdict::Another(_)));
    }
    // The same name, from an earlier run.
    let mut batches = batches();
    batches[0][8] ^= 1;
    let image = seal(&batches, NAME).image().to_vec();
    assert!(matches!(judge(&image, image.len(), NAME, check), Verdict::Another(_)));
}

/// The same batches with another text, and in the same places: as another queue's of the same
/// sequences may have stood there before.
fn stale() -> Vec<u8> {
    let mut stale = batches();
    for (nth, batch) in stale.iter_mut().enumerate() {
        let mut builder = BatchBuilder::default();
        for _ in 0..COUNTS[nth] {
            builder.push(0, b"", b"what it was");
        }
        let accepted_us = TIME_US + 1000 * nth as u64;
        let prefix = BatchPrefix { base_sequence: range_of(nth).start, accepted_us };
        *batch = prefix.encode().to_vec();
        batch.extend_from_slice(builder.finish(0, 9, 1));
    }
    let stale = seal(&stale, ChunkName { queue: 8, ..NAME }).image().to_vec();
    assert_eq!(ChunkHeader::decode(&stale).unwrap().used_bytes as usize, starts()[4]);
    stale
}

#[test]
fn of_what_stood_there_before_nothing_is_taken() {
    let (image, stale, starts) = (image(), stale(), starts());
    let check = check_of(&image);
    for first in 0..4 {
        for end in first + 1..=4 {
            let mut damaged = image.clone();
            let range = starts[first]..starts[end];
            damaged[range.clone()].copy_from_slice(&stale[range]);
            // One that is another is known; of more nobody knows which they are.
            let expected = (end == first + 1).then(|| vec![range_of(first)]);
            assert_eq!(lost_of(damaged, check), expected, "{first}..{end}");
        }
    }
}

#[test]
fn of_an_image_that_is_torn_anywhere_nothing_wrong_is_taken() {
    let (image, stale, end) = (image(), stale(), starts()[4]);
    let check = check_of(&image);
    for from in 0..end {
        for to in [from + 1, from + 8, from + 56, from + 150, end] {
            let mut damaged = image.clone();
            let range = from..to.min(end);
            damaged[range.clone()].copy_from_slice(&stale[range]);
            // Each message that is taken is compared there.
            lost_of(damaged, check);
        }
    }
}

#[test]
fn a_batch_of_another_behind_the_sequence_of_ours_is_not_taken() {
    // A sector of which the front was written and the rest is of a chunk of other sequences.
    let (mut damaged, stale, starts) = (image(), stale(), starts());
    let check = check_of(&damaged);
    damaged[starts[0] + 8..].copy_from_slice(&stale[starts[0] + 8..]);
    assert_eq!(lost_of(damaged, check), None);
}

#[test]
fn a_header_that_fits_by_chance_makes_no_image_ours() {
    // Whole batches of another chunk, for which a header with our name would have the very check.
    let (image, mut stale) = (image(), stale());
    let (check, end) = (check_of(&image), starts()[4]);
    let fits = (0..1u64 << 24).any(|time| {
        stale[CHUNK_HEADER_BYTES + 8..CHUNK_HEADER_BYTES + 16].copy_from_slice(&time.to_le_bytes());
        let batches = &stale[CHUNK_HEADER_BYTES..end];
        check_of(&ChunkHeader::of(NAME, batches).encode(batches)) == check
    });
    assert!(fits, "of 16 bits all are met in so many tries");
    assert_eq!(lost_of(stale, check), None);
}

#[test]
fn what_contradicts_what_is_known_of_the_chunk_is_not_saved() {
    let mut damaged = image();
    damaged[starts()[1] + 75] ^= 4;
    let check = check_of(&damaged);
    assert!(salvage(&mut damaged.clone(), NAME, check).is_some());
    assert_eq!(salvage(&mut damaged.clone(), NAME, check ^ 1), None);
    let name = ChunkName { queue: 8, ..NAME };
    assert_eq!(salvage(&mut damaged, name, check), None);
    // Written with sequences that its batches do not have, or too many.
    for (first_sequence, end_sequence) in [(101, 113), (100, 113)] {
        let name = ChunkName { first_sequence, end_sequence, ..NAME };
        let mut damaged = seal(&batches(), name).image().to_vec();
        damaged[starts()[1] + 75] ^= 4;
        let check = check_of(&damaged);
        assert_eq!(salvage(&mut damaged, name, check), None);
    }
}

#[test]
fn a_chunk_of_zeros_or_of_bytes_without_sense_is_lost() {
    let check = check_of(&image());
    assert_eq!(lost_of(vec![0; DISK_ALIGN_BYTES], check), None);
    assert_eq!(lost_of(vec![0xFF; DISK_ALIGN_BYTES], check), None);
}

/// The one chunk of a large message, or one of several: its batches have no sequence.
fn fragments(name: ChunkName) -> Vec<u8> {
    let fragment = |nth: u64| {
        let mut builder = BatchBuilder::default();
        builder.push(0, b"", &[nth as u8; 700]);
        let mut bytes = BatchPrefix { base_sequence: 0, accepted_us: 5 }.encode().to_vec();
        bytes.extend_from_slice(builder.finish(FRAGMENT, 9, 1 + nth));
        bytes
    };
    seal(&[fragment(0), fragment(1), fragment(2)], name).image().to_vec()
}

#[test]
fn a_large_message_is_whole_or_lost() {
    for end_sequence in [200, 201] {
        let name = ChunkName { first_sequence: 200, end_sequence, ..NAME };
        let image = fragments(name);
        let check = check_of(&image);
        let used_bytes = ChunkHeader::decode(&image).unwrap().used_bytes as usize;
        assert_eq!(judge(&image, image.len(), name, check), Verdict::Whole { used_bytes });
        for bit in (0..used_bytes * 8).step_by(7) {
            let mut damaged = image.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let verdict = judge(&damaged, image.len(), name, check);
            assert!(matches!(verdict, Verdict::Damaged { .. }), "bit {bit}");
            let saved = salvage(&mut damaged, name, check);
            if bit / 8 < CHUNK_HEADER_BYTES {
                assert_eq!(saved, Some(Saved { used_bytes, lost: vec![] }));
                assert_eq!(damaged, image);
            } else {
                assert_eq!(saved, None, "bit {bit}");
            }
        }
    }
}
