//! Golden bytes and properties of the one byte layout. The golden bytes were made by a script that
//! shares nothing with this code; docs/PROTOCOL.md draws the same layouts.

use super::batch::{self, Batch, BatchBuilder, BatchError, BatchHeader, BatchPrefix};
use super::properties::{self, PropertiesBuilder, PropertiesError, Tag};
use super::record::{self, RecordHeader, Records};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_RECORDS_BYTES_MAX, BATCH_RECORDS_MAX, HEADER_KEY_BYTES_MAX,
    HEADERS_MAX, PROPERTIES_BYTES_MAX, RECORD_HEADER_BYTES,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Message id `m-1` and the header `k: v2`.
const PROPERTIES: &str = "02 0300 6d2d31  03 0400 01 6b 7632";

/// Two records of producer 0x1122334455667788 from sequence 7: `hello`, then an empty body with
/// [`PROPERTIES`].
const BATCH: &str = "
    6b4a4db4 0afb 01 00 0000 0000 02000000 32000000 00000000 8877665544332211 0700000000000000
    05000000 0000 0000 00000000 00000000 68656c6c6f
    00000000 0d00 0000 01000000 00000000 0203006d2d31 030400016b7632";

/// First fragment, `first`, of a message of 9 bytes; producer 5, sequence 3.
const FRAGMENT: &str = "
    57340848 0afb 01 00 0100 0000 01000000 20000000 00000000 0500000000000000 0300000000000000
    05000000 0b00 0300 00000000 00000000 010800 0900000000000000 6669727374";

/// The second record of [`BATCH`], cut out.
const CUT: &str = "
    d1f49b07 0afb 01 00 0000 0000 01000000 1d000000 00000000 8877665544332211 0800000000000000
    00000000 0d00 0000 00000000 00000000 0203006d2d31 030400016b7632";

fn sample_properties() -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::default();
    builder.push(Tag::MessageId, b"m-1").unwrap();
    builder.header(b"k", b"v2").unwrap();
    builder
}

fn sample_batch() -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    builder.push(0, b"", b"hello");
    builder.push(0, sample_properties().bytes(), b"");
    builder.finish(0, 0x1122_3344_5566_7788, 7).to_vec()
}

/// `wire` with the checksum that its bytes should have, so that only the later checks are left.
fn resealed(mut wire: Vec<u8>) -> Vec<u8> {
    let crc = crate::base::checksum::crc32c(&wire[4..]);
    wire[..4].copy_from_slice(&crc.to_le_bytes());
    wire
}

#[test]
fn golden_properties() {
    assert_eq!(sample_properties().bytes(), hex(PROPERTIES));
    assert!(!sample_properties().concerns_broker());
}

#[test]
fn golden_record() {
    let header = RecordHeader {
        body_bytes: 0x0102_0304,
        properties_bytes: 0x0506,
        flags: 0x0708,
        sequence_delta: 0x090a_0b0c,
        time_delta_ms: 0x0d0e_0f10,
    };
    assert_eq!(header.encode().to_vec(), hex("04030201 0605 0807 0c0b0a09 100f0e0d"));
    assert_eq!(RecordHeader::decode(&header.encode()), Some(header));
}

#[test]
fn golden_batch() {
    assert_eq!(sample_batch(), hex(BATCH));
    let wire = hex(BATCH);
    let batch = Batch::decode(&wire).unwrap();
    assert_eq!((batch.header.record_count, batch.header.producer_sequence), (2, 7));
    assert_eq!((batch.body_bytes, batch.record_flags, batch.broker_tags), (5, 0, 0));
    let bodies: Vec<&[u8]> = Records::new(batch.records()).map(|record| record.body).collect();
    assert_eq!(bodies, [b"hello".as_slice(), b""]);
}

#[test]
fn golden_fragment() {
    let mut properties = PropertiesBuilder::default();
    properties.push(Tag::BodyBytesTotal, &9u64.to_le_bytes()).unwrap();
    assert!(properties.concerns_broker());
    let mut builder = BatchBuilder::default();
    let flags = record::BROKER_PROPERTIES | record::FRAGMENT_FIRST;
    builder.push(flags, properties.bytes(), b"first");
    assert_eq!(builder.finish(batch::FRAGMENT, 5, 3), hex(FRAGMENT));
    let wire = hex(FRAGMENT);
    let decoded = Batch::decode(&wire).unwrap();
    assert_eq!(decoded.broker_tags, 1 << Tag::BodyBytesTotal as u8);
    assert_eq!(properties::find_u64(properties.bytes(), Tag::BodyBytesTotal), Some(9));
}

#[test]
fn golden_cut() {
    let (wire, mut into) = (hex(BATCH), vec![0xee; 3]);
    batch::cut(&Batch::decode(&wire).unwrap(), 1, 1, &mut into);
    assert_eq!(into, hex(CUT));
}

#[test]
fn golden_prefix() {
    let prefix =
        BatchPrefix { base_sequence: 0x0102_0304_0506_0708, accepted_us: 0x1112_1314_1516_1718 };
    assert_eq!(prefix.encode().to_vec(), hex("0807060504030201 1817161514131211"));
    assert_eq!(BatchPrefix::decode(&prefix.encode()), prefix);
}

#[test]
fn all_zero_bytes_never_decode() {
    for bytes in 0..4096 {
        let zeros = vec![0; bytes];
        assert!(BatchHeader::decode(&zeros).is_err());
        assert!(Batch::decode(&zeros).is_err());
    }
}

#[test]
fn a_flipped_bit_is_never_accepted() {
    for golden in [BATCH, FRAGMENT, CUT] {
        let wire = hex(golden);
        for bit in 0..wire.len() * 8 {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(&damaged).is_err(), "bit {bit} of {golden}");
        }
    }
}

#[test]
fn another_length_is_never_accepted() {
    let wire = hex(BATCH);
    for bytes in 0..wire.len() {
        assert!(Batch::decode(&wire[..bytes]).is_err(), "cut to {bytes} bytes");
        let lying = if bytes < 4 { wire[..bytes].to_vec() } else { resealed(wire[..bytes].into()) };
        assert!(Batch::decode(&lying).is_err(), "cut to {bytes} bytes and sealed");
    }
    for more in 1..64 {
        let mut longer = wire.clone();
        longer.resize(wire.len() + more, 0);
        assert!(Batch::decode(&longer).is_err(), "{more} bytes more");
        let records_bytes = (longer.len() - BATCH_HEADER_BYTES) as u32;
        longer[16..20].copy_from_slice(&records_bytes.to_le_bytes());
        assert!(Batch::decode(&resealed(longer)).is_err(), "{more} bytes more, counted and sealed");
    }
}

/// [`BATCH`] with `bytes` written at `at`, sealed again: what the decoder says to it.
fn lie(at: usize, bytes: &[u8]) -> BatchError {
    let mut wire = hex(BATCH);
    wire[at..at + bytes.len()].copy_from_slice(bytes);
    Batch::decode(&resealed(wire)).expect_err("a lie")
}

#[test]
fn every_lie_has_its_error() {
    let too_many = BATCH_RECORDS_MAX as u32 + 1;
    let too_large = BATCH_RECORDS_BYTES_MAX as u32 + 1;
    assert_eq!(lie(4, &[0, 0]), BatchError::Magic(0));
    assert_eq!(lie(6, &[2]), BatchError::Version(2));
    assert_eq!(lie(8, &2u16.to_le_bytes()), BatchError::Reserved);
    assert_eq!(lie(10, &[1]), BatchError::Reserved);
    assert_eq!(lie(20, &[1]), BatchError::Reserved);
    assert_eq!(lie(12, &0u32.to_le_bytes()), BatchError::RecordCount(0));
    assert_eq!(lie(12, &too_many.to_le_bytes()), BatchError::RecordCount(too_many));
    assert!(matches!(lie(12, &1u32.to_le_bytes()), BatchError::Records(_)));
    assert!(matches!(lie(12, &3u32.to_le_bytes()), BatchError::Records(_)));
    assert_eq!(lie(16, &too_large.to_le_bytes()), BatchError::RecordsBytes(too_large));
    assert_eq!(lie(16, &u32::MAX.to_le_bytes()), BatchError::RecordsBytes(u32::MAX));
    assert!(matches!(lie(16, &1u32.to_le_bytes()), BatchError::Length { .. }));
    assert!(matches!(lie(32, &u64::MAX.to_le_bytes()), BatchError::Records(_)));
    assert!(matches!(lie(32, &0u64.to_le_bytes()), BatchError::Records(_)));
    let record = BATCH_HEADER_BYTES;
    assert!(matches!(lie(record, &u32::MAX.to_le_bytes()), BatchError::Records(_)));
    assert!(matches!(lie(record + 4, &u16::MAX.to_le_bytes()), BatchError::Records(_)));
    assert_eq!(lie(record + 6, &8u16.to_le_bytes()), BatchError::Reserved);
    assert!(matches!(lie(record + 6, &[2]), BatchError::Records(_)));
    assert!(matches!(lie(record + 8, &[1]), BatchError::Records(_)));
    assert!(matches!(lie(record + 12, &[1]), BatchError::Records(_)));
    // The second record's first property: its tag becomes one for the broker, its length a lie.
    let property = record + RECORD_HEADER_BYTES + 5 + RECORD_HEADER_BYTES;
    assert!(matches!(lie(property, &[Tag::DedupId as u8]), BatchError::Records(_)));
    assert!(matches!(lie(property + 1, &[200]), BatchError::Properties(_)));
}

#[test]
fn a_fragment_is_alone_in_its_batch() {
    let mut builder = BatchBuilder::default();
    builder.push(record::FRAGMENT_LAST, b"", b"a");
    assert!(Batch::decode(builder.finish(batch::FRAGMENT, 0, 1)).is_ok());
    assert!(Batch::decode(builder.finish(0, 0, 1)).is_err());
    builder.push(0, b"", b"b");
    assert!(Batch::decode(builder.finish(batch::FRAGMENT, 0, 1)).is_err());
}

#[test]
fn a_batch_takes_as_much_as_its_limits_and_no_more() {
    let mut builder = BatchBuilder::default();
    for _ in 0..BATCH_RECORDS_MAX {
        assert!(builder.fits(0));
        builder.push(0, b"", b"");
    }
    assert!(!builder.fits(0));
    assert!(Batch::decode(builder.finish(0, 0, 1)).is_ok());
    builder.clear();
    let body = vec![7; BATCH_RECORDS_BYTES_MAX - RECORD_HEADER_BYTES];
    assert!(builder.fits(body.len()) && !builder.fits(body.len() + 1));
    builder.push(0, b"", &body);
    assert_eq!(Batch::decode(builder.finish(0, 0, 1)).unwrap().body_bytes, body.len() as u64);
}

#[test]
fn properties_keep_their_limits() {
    let mut builder = PropertiesBuilder::default();
    assert_eq!(builder.header(b"", b"v"), Err(PropertiesError::HeaderKey));
    assert_eq!(
        builder.header(&[b'k'; HEADER_KEY_BYTES_MAX + 1], b""),
        Err(PropertiesError::HeaderKey)
    );
    for _ in 0..HEADERS_MAX {
        builder.header(&[b'k'; HEADER_KEY_BYTES_MAX], b"").unwrap();
    }
    assert_eq!(builder.header(b"k", b""), Err(PropertiesError::TooManyHeaders));
    assert_eq!(properties::check(builder.bytes()), Ok(0));
    let mut more = builder.bytes().to_vec();
    more.extend_from_slice(&[Tag::Header as u8, 2, 0, 1, b'k']);
    assert_eq!(properties::check(&more), Err(PropertiesError::TooManyHeaders));

    builder.clear();
    let value = vec![0; PROPERTIES_BYTES_MAX - 3];
    builder.push(Tag::MessageId, &value).unwrap();
    assert_eq!(builder.push(Tag::ReplyTo, b""), Err(PropertiesError::TooLarge));
}

#[test]
fn damaged_properties_have_their_error() {
    assert_eq!(properties::check(&[2]), Err(PropertiesError::Truncated));
    assert_eq!(properties::check(&[2, 1, 0]), Err(PropertiesError::Truncated));
    assert_eq!(properties::check(&[2, 0, 0, 2, 0, 0]), Err(PropertiesError::Twice(2)));
    assert_eq!(properties::check(&[5, 1, 0, 9]), Err(PropertiesError::WrongLength(5)));
    assert_eq!(properties::check(&[3, 1, 0, 0]), Err(PropertiesError::WrongLength(3)));
    assert_eq!(properties::check(&[3, 2, 0, 9, b'k']), Err(PropertiesError::WrongLength(3)));
    // Unknown tags are carried along, even twice.
    assert_eq!(properties::check(&[99, 1, 0, 5, 99, 0, 0]), Ok(0));
    assert_eq!(properties::check(&[4, 1, 0, 5]), Ok(1 << Tag::Key as u8));
}

#[test]
fn tags_know_their_numbers() {
    for number in 0..=u8::MAX {
        assert!(Tag::from_u8(number).is_none_or(|tag| tag as u8 == number));
    }
    assert_eq!(Tag::from_u8(11), Some(Tag::TraceContext));
    assert_eq!((Tag::from_u8(0), Tag::from_u8(12)), (None, None));
}

/// Content of a record: headers for its properties, then its body.
type Content = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

fn contents() -> impl Strategy<Value = Vec<Content>> {
    let header = (vec(any::<u8>(), 1..20), vec(any::<u8>(), 0..40));
    vec((vec(header, 0..4), vec(any::<u8>(), 0..200)), 1..20)
}

fn build(contents: &[Content], producer_id: u64, sequence: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for (headers, body) in contents {
        let mut properties = PropertiesBuilder::default();
        for (key, value) in headers {
            properties.header(key, value).unwrap();
        }
        builder.push(0, properties.bytes(), body);
    }
    builder.finish(0, producer_id, sequence).to_vec()
}

/// What [`build`] was given, read back from a checked batch.
fn read(batch: &Batch<'_>) -> Vec<Content> {
    let headers = |block| {
        properties::walk(block)
            .map(|property| properties::split_header(property.unwrap().1).unwrap())
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect()
    };
    Records::new(batch.records())
        .map(|record| (headers(record.properties), record.body.to_vec()))
        .collect()
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(
        contents in contents(),
        id in any::<u64>(),
        sequence in 1..u64::MAX / 2,
    ) {
        let wire = build(&contents, id, sequence);
        let batch = Batch::decode(&wire).unwrap();
        prop_assert_eq!(read(&batch), contents);
        prop_assert_eq!((batch.header.producer_id, batch.header.producer_sequence), (id, sequence));
    }

    #[test]
    fn a_cut_keeps_order_and_content(contents in contents(), at in any::<prop::sample::Index>()) {
        let wire = build(&contents, 3, 100);
        let batch = Batch::decode(&wire).unwrap();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let at = at.index(contents.len());
        batch::cut(&batch, at as u32, (contents.len() - at) as u32, &mut second);
        let second = Batch::decode(&second).unwrap();
        prop_assert_eq!(second.header.producer_sequence, 100 + at as u64);
        let mut joined = Vec::new();
        if at > 0 {
            batch::cut(&batch, 0, at as u32, &mut first);
            let first = Batch::decode(&first).unwrap();
            prop_assert_eq!(first.header.producer_sequence, 100);
            joined = read(&first);
        }
        joined.extend(read(&second));
        prop_assert_eq!(joined, contents);
    }

    #[test]
    fn damage_anywhere_is_never_accepted(
        contents in contents(),
        bit in any::<prop::sample::Index>(),
    ) {
        let mut wire = build(&contents, 1, 1);
        let bit = bit.index(wire.len() * 8);
        wire[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Batch::decode(&wire).is_err());
    }

    /// A producer that lies, with a right checksum: what is accepted can be walked as counted.
    #[test]
    fn what_is_accepted_keeps_its_word(
        contents in contents(),
        lies in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut wire = build(&contents, 1, 1);
        for (at, byte) in lies {
            let at = at.index(wire.len());
            wire[at] = byte;
        }
        let wire = resealed(wire);
        if let Ok(batch) = Batch::decode(&wire) {
            let mut records = Records::new(batch.records());
            prop_assert_eq!(records.by_ref().count(), batch.header.record_count as usize);
            prop_assert!(records.rest().is_empty());
            let bodies: usize = Records::new(batch.records()).map(|record| record.body.len()).sum();
            prop_assert_eq!(bodies as u64, batch.body_bytes);
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..600), sealed in any::<bool>()) {
        if sealed && bytes.len() >= BATCH_HEADER_BYTES {
            bytes[4..12].copy_from_slice(&hex("0afb010000000000"));
            let records_bytes = (bytes.len() - BATCH_HEADER_BYTES) as u32;
            bytes[14..16].fill(0);
            bytes[16..20].copy_from_slice(&records_bytes.to_le_bytes());
            bytes[20..24].fill(0);
            bytes = resealed(bytes);
        }
        let _ = Batch::decode(&bytes);
        let _ = BatchHeader::decode(&bytes);
        let _ = RecordHeader::decode(&bytes);
        let _ = Records::new(&bytes).count();
        let _ = properties::check(&bytes);
        let _ = properties::walk(&bytes).count();
        let _ = properties::find(&bytes, Tag::Key);
        let _ = properties::find_u64(&bytes, Tag::DeliverAt);
        let _ = properties::split_header(&bytes);
    }
}

#[cfg(feature = "server")]
mod chunks {
    use super::*;
    use crate::base::checksum::crc32c;
    use crate::format::chunk::{ChunkError, ChunkHeader, Heads};

    /// Chunk 3 of queue 9: prefix (sequence 1000) and [`BATCH`].
    const HEADER: &str = "
        856a41bf 4642434b 01000000 aa000000 0900000000000000 e803000000000000 ea03000000000000
        01000000 b6e394fb 0300000000000000 b6e394fb00000000";

    fn sample() -> (ChunkHeader, Vec<u8>) {
        let prefix = BatchPrefix { base_sequence: 1000, accepted_us: 0x0006_0000_0000_0001 };
        let mut batches = prefix.encode().to_vec();
        batches.extend_from_slice(&hex(BATCH));
        let header = ChunkHeader {
            used_bytes: 64 + batches.len() as u32,
            queue: 9,
            first_sequence: 1000,
            end_sequence: 1002,
            batch_count: 1,
            chunk: 3,
            heads: Heads::of([crc32c(&batches[..56])]),
        };
        (header, batches)
    }

    fn image() -> Vec<u8> {
        let (header, batches) = sample();
        [header.encode(&batches).as_slice(), &batches].concat()
    }

    #[test]
    fn golden_chunk() {
        let (header, batches) = sample();
        assert_eq!(header.encode(&batches).to_vec(), hex(HEADER));
        let mut padded = image();
        assert_eq!(ChunkHeader::decode(&padded), Ok(header));
        padded.resize(4096, 0xee);
        assert_eq!(ChunkHeader::decode(&padded), Ok(header), "padding is not looked at");
    }

    #[test]
    fn a_damaged_chunk_is_never_accepted() {
        let image = image();
        for bit in 0..image.len() * 8 {
            let mut damaged = image.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(ChunkHeader::decode(&damaged).is_err(), "bit {bit}");
        }
        for bytes in 0..image.len() {
            assert!(ChunkHeader::decode(&image[..bytes]).is_err(), "cut to {bytes} bytes");
            assert!(ChunkHeader::decode(&vec![0; bytes]).is_err(), "{bytes} zeros");
        }
        let (mut header, batches) = sample();
        header.first_sequence = header.end_sequence + 1;
        let twisted = [header.encode(&batches).as_slice(), &batches].concat();
        assert_eq!(ChunkHeader::decode(&twisted), Err(ChunkError::Contradiction));
    }

    proptest! {
        #[test]
        fn random_bytes_are_no_chunk(
            mut bytes in vec(any::<u8>(), 0..600),
            marked in any::<bool>(),
        ) {
            if marked && bytes.len() >= 64 {
                bytes[4..12].copy_from_slice(&hex("4642434b 0100 0000"));
                bytes[14..16].fill(0);
            }
            prop_assert!(ChunkHeader::decode(&bytes).is_err());
        }
    }
}
