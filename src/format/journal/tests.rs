//! Golden bytes and properties of the journal's layout. The golden bytes were made by a script that
//! shares nothing with this code; docs/STORAGE.md has the same tables.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

const SEGMENT: &str = "
    63799ae1 46424a53 0100 0000 00000000 000102030405060708090a0b0c0d0e0f
    0300000000000000 0700000000000000
    0600000000000000 2a00000000000000 0050000000000000 1100000000000000";

/// A batch `hello`, and acks without any, carried forward.
const GROUP: &str = "
    7cc19ee9 46424a47 0100 0000 15000000 000102030405060708090a0b0c0d0e0f
    0300000000000000 0700000000000000 2a00000000000000 2800000000000000 02000000 02000000
    01 00 0000 05000000 68656c6c6f
    02 01 0000 00000000";

const STORE: StoreId = StoreId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
const PLACE: GroupPlace = GroupPlace { store: STORE, epoch: 3, segment: 7, page: 2 };
const HEADER: SegmentHeader = SegmentHeader {
    store: STORE,
    epoch: 3,
    segment: 7,
    end: LogEnd { segment: 6, group: 42, offset: 0x5000 },
    needed: 17,
};
const RECORDS: [Record<'static>; 2] = [
    Record { kind: RecordKind::Publish as u8, flags: 0, body: b"hello" },
    Record { kind: RecordKind::Acks as u8, flags: CARRIED, body: b"" },
];

fn group_of(records: &[Record<'_>]) -> Vec<u8> {
    let mut image = Pages::zeroed(JOURNAL_GROUP_HEADER_BYTES);
    for record in records {
        let (front, back) = record.body.split_at(record.body.len() / 2);
        encode_record(record.kind, record.flags, &[front, back], &mut image);
    }
    seal_group(&mut image, &PLACE, 42, 40, records.len() as u32);
    image.as_slice().to_vec()
}

/// The block of [`HEADER`], in memory that held something else.
fn header_block() -> Vec<u8> {
    let mut pages = Pages::default();
    pages.extend_from_slice(&[7; 3 * DISK_ALIGN_BYTES]);
    HEADER.encode(&mut pages);
    pages.as_slice().to_vec()
}

/// `image` with `bytes` at `at`, and the checksum over `used` that it then should have.
fn resealed(mut image: Vec<u8>, at: usize, bytes: &[u8], used: usize) -> Vec<u8> {
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c(&image[4..used]);
    image[..4].copy_from_slice(&crc.to_le_bytes());
    image
}

#[test]
fn golden_segment_header() {
    let mut block = hex(SEGMENT);
    assert_eq!(block.len(), JOURNAL_SEGMENT_HEADER_BYTES);
    block.resize(DISK_ALIGN_BYTES, 0);
    assert_eq!(header_block(), block);
    assert_eq!(SegmentHeader::decode(&block), Ok(HEADER));
}

#[test]
fn golden_group() {
    let mut image = hex(GROUP);
    image.resize(DISK_ALIGN_BYTES, 0);
    assert_eq!(group_of(&RECORDS), image);
    let group = Group::decode(&image, &PLACE).unwrap();
    assert_eq!((group.group, group.synced, group.record_count), (42, 40, 2));
    assert_eq!(group.image_bytes(), DISK_ALIGN_BYTES);
    assert_eq!(group.records().collect::<Vec<_>>(), RECORDS);
}

#[test]
fn all_zero_bytes_never_decode() {
    let zeros = vec![0; 3 * DISK_ALIGN_BYTES];
    for bytes in 0..zeros.len() {
        assert!(SegmentHeader::decode(&zeros[..bytes]).is_err());
        assert!(Group::decode(&zeros[..bytes], &PLACE).is_err());
    }
}

#[test]
fn a_flipped_bit_is_never_accepted() {
    let (segment, group) = (hex(SEGMENT), hex(GROUP));
    let flipped = |bytes: &[u8], bit: usize| {
        let mut damaged = bytes.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        damaged
    };
    for bit in 0..segment.len() * 8 {
        assert!(SegmentHeader::decode(&flipped(&segment, bit)).is_err(), "bit {bit}");
    }
    for bit in 0..group.len() * 8 {
        assert!(Group::decode(&flipped(&group, bit), &PLACE).is_err(), "bit {bit}");
    }
}

#[test]
fn a_version_that_is_not_known_is_told_from_damage() {
    let header = header_block();
    let later = resealed(header.clone(), 8, &[2], JOURNAL_SEGMENT_HEADER_BYTES);
    assert_eq!(SegmentHeader::decode(&later), Err(JournalError::Version(2)));
    let mut damaged = header;
    damaged[8] = 2;
    let outcome = SegmentHeader::decode(&damaged);
    assert!(matches!(outcome, Err(JournalError::Checksum { .. })));
    let used = hex(GROUP).len();
    let later = resealed(group_of(&RECORDS), 8, &[2], used);
    assert_eq!(Group::decode(&later, &PLACE), Err(JournalError::Version(2)));
}

#[test]
fn a_group_stands_where_it_says() {
    let image = group_of(&RECORDS);
    let other = StoreId([9; 16]);
    for place in [
        GroupPlace { store: other, ..PLACE },
        GroupPlace { epoch: 4, ..PLACE },
        GroupPlace { segment: 8, ..PLACE },
        GroupPlace { page: 3, ..PLACE },
    ] {
        let another = JournalError::Another { epoch: 3, segment: 7, page: 2 };
        assert_eq!(Group::decode(&image, &place), Err(another));
    }
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let used = hex(GROUP).len();
    let decoded = |at: usize, bytes: &[u8], used: usize| {
        Group::decode(&resealed(group_of(&RECORDS), at, bytes, used), &PLACE).err()
    };
    assert_eq!(decoded(10, &[1], used), Some(JournalError::Contradiction)); // flags
    assert_eq!(decoded(48, &[40], used), Some(JournalError::Contradiction)); // synced itself
    assert_eq!(decoded(55, &[0xff], used), Some(JournalError::Contradiction)); // wraps
    assert_eq!(decoded(68, &[0], used), Some(JournalError::Contradiction)); // no records
    assert_eq!(decoded(68, &[1], used), Some(JournalError::Contradiction)); // too few
    assert_eq!(decoded(68, &[3], used), Some(JournalError::Record(2)));
    assert_eq!(decoded(72, &[0], used), Some(JournalError::Record(0))); // kind
    assert_eq!(decoded(74, &[1], used), Some(JournalError::Record(0))); // reserved
    assert_eq!(decoded(79, &[0xff], used), Some(JournalError::Record(0))); // too long
    assert_eq!(decoded(85, &[0], used), Some(JournalError::Record(1)));
    let too_long = JournalError::Length { expected: 72 + 0xff00_0015, actual: DISK_ALIGN_BYTES };
    assert_eq!(decoded(15, &[0xff], used), Some(too_long));

    let refused = |at: usize, bytes: &[u8]| {
        let header = resealed(header_block(), at, bytes, JOURNAL_SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::decode(&header), Err(JournalError::Contradiction), "{at}");
    };
    refused(10, &[1]); // flags
    refused(12, &[1]); // reserved
    refused(32, &[0]); // epoch
    refused(39, &[0xff]);
    refused(40, &[6]); // its own predecessor
    refused(47, &[0xff]);
    refused(63, &[0xff]); // end
    refused(72, &[0]); // needed
    refused(72, &[43]);
}

#[test]
fn kinds_that_are_not_known_are_handed_on() {
    let record = Record { kind: 200, flags: 0x80, body: b"later" };
    let image = group_of(&[record]);
    let group = Group::decode(&image, &PLACE).unwrap();
    assert_eq!(group.records().collect::<Vec<_>>(), [record]);
}

proptest! {
    #[test]
    fn groups_round_trip(
        bodies in vec((1..=255u8, any::<u8>(), vec(any::<u8>(), 0..3000)), 1..20),
    ) {
        let records: Vec<_> = bodies
            .iter()
            .map(|(kind, flags, body)| Record { kind: *kind, flags: *flags, body })
            .collect();
        let mut image = group_of(&records);
        prop_assert!(image.len().is_multiple_of(DISK_ALIGN_BYTES));
        image.extend_from_slice(&[7; 100]);
        let group = Group::decode(&image, &PLACE).unwrap();
        prop_assert_eq!(&group.records().collect::<Vec<_>>(), &records);
        prop_assert_eq!(group.image_bytes() + 100, image.len());
        let records_bytes: usize =
            records.iter().map(|record| JOURNAL_RECORD_HEADER_BYTES + record.body.len()).sum();
        let used = JOURNAL_GROUP_HEADER_BYTES + records_bytes;
        for bytes in [0, 71, 72, used - 1] {
            prop_assert!(Group::decode(&image[..bytes], &PLACE).is_err());
        }
    }

    /// Whatever is written over a group, with a checksum that is right, nothing panics, and what is
    /// accepted has as many records as it says.
    #[test]
    fn no_bytes_panic(at in 0..100usize, bytes in vec(any::<u8>(), 1..90), used in 72..4096usize) {
        let mut group = resealed(group_of(&RECORDS), at, &bytes, used);
        if at > 15 {
            group[12..16].copy_from_slice(&(used as u32 - 72).to_le_bytes());
        }
        let group = resealed(group, 4, &GROUP_MAGIC.to_le_bytes(), used);
        let place = GroupPlace::read_unchecked(&group, PLACE.store).unwrap_or(PLACE);
        if let Ok(decoded) = Group::decode(&group, &place) {
            prop_assert_eq!(decoded.records().count(), decoded.record_count as usize);
        }
        let header = resealed(header_block(), at, &bytes, JOURNAL_SEGMENT_HEADER_BYTES);
        let _ = SegmentHeader::decode(&header);
        let _ = SegmentHeader::decode(&bytes);
    }
}
