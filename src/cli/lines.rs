//! Cuts a stream of bytes into lines, as messages: only the `\n` goes, whatever else the bytes are.
//! An empty line is a message; an unterminated last line is one too.

use std::io::{ErrorKind, Read};

/// Bytes asked of the system at once, and so about the size of a block.
const READ_BYTES: usize = 256 * 1024;

/// Reads blocks that hold whole lines. What has been read is given at once, so that a slow writer's
/// lines do not wait for a full block.
#[derive(Debug)]
pub struct LineBlocks<R> {
    reader: R,
    /// Beginning of a line whose end has not been read.
    tail: Vec<u8>,
    line_bytes_max: usize,
    ended: bool,
}

/// Why reading lines ended early.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// As the system says.
    #[error("cannot read: {0}")]
    Io(#[from] std::io::Error),
    /// A line longer than any message may be.
    #[error("a line is longer than {0} bytes, the most that any message may have")]
    TooLong(usize),
}

impl<R: Read> LineBlocks<R> {
    /// Reads from `reader`; no line may have more than `line_bytes_max` bytes.
    pub fn new(reader: R, line_bytes_max: usize) -> LineBlocks<R> {
        LineBlocks { reader, tail: Vec::new(), line_bytes_max, ended: false }
    }

    /// The next block, for [`lines`]; `None` at the end. Waits until a line is complete.
    ///
    /// # Errors
    /// If reading fails or a line is too long. What was read of that line is lost.
    pub fn next_block(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let mut block = std::mem::take(&mut self.tail);
        while !self.ended {
            let begun = block.len();
            block.resize(begun + READ_BYTES, 0);
            let read = self.read(&mut block[begun..]);
            block.truncate(begun + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                self.ended = true;
                break;
            }
            if let Some(last) = block[begun..].iter().rposition(|&byte| byte == b'\n') {
                self.tail = block.split_off(begun + last + 1);
                return Ok(Some(block));
            }
            if block.len() > self.line_bytes_max {
                return Err(LineError::TooLong(self.line_bytes_max));
            }
        }
        Ok((!block.is_empty()).then_some(block))
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.reader.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// The lines of a block that is not empty.
pub fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    block.strip_suffix(b"\n").unwrap_or(block).split(|&byte| byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives at most so many bytes per read, as a pipe does.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let bytes = self.0.len().min(self.1).min(buffer.len());
            buffer[..bytes].copy_from_slice(&self.0[..bytes]);
            self.0 = &self.0[bytes..];
            Ok(bytes)
        }
    }

    fn lines_of(input: &[u8], read_bytes: usize) -> Vec<Vec<u8>> {
        let mut blocks = LineBlocks::new(Trickle(input, read_bytes), 1 << 20);
        let mut all = Vec::new();
        while let Some(block) = blocks.next_block().unwrap() {
            all.extend(lines(&block).map(<[u8]>::to_vec));
        }
        all
    }

    #[test]
    fn only_the_newline_goes() {
        let cases: [(&[u8], &[&[u8]]); 8] = [
            (b"", &[]),
            (b"\n", &[b""]),
            (b"a", &[b"a"]),
            (b"a\n", &[b"a"]),
            (b"a\n\nb", &[b"a", b"", b"b"]),
            (b"\n\n", &[b"", b""]),
            (b"a\r\nb\r", &[b"a\r", b"b\r"]),
            (b"\xff\x00\n\xc3", &[b"\xff\x00", b"\xc3"]),
        ];
        for (input, expected) in cases {
            assert_eq!(lines_of(input, 1000), expected, "{input:?}");
            assert_eq!(lines_of(input, 1), expected, "{input:?} byte by byte");
        }
    }

    #[test]
    fn what_is_there_does_not_wait_for_more() {
        let mut blocks = LineBlocks::new(Trickle(b"one\ntwo\nth", 9), 100);
        assert_eq!(blocks.next_block().unwrap().unwrap(), b"one\ntwo\n");
        assert_eq!(blocks.next_block().unwrap().unwrap(), b"th");
        assert!(blocks.next_block().unwrap().is_none());
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let endless = std::io::repeat(b'x');
        let error = LineBlocks::new(endless, 1 << 20).next_block().unwrap_err();
        assert!(matches!(error, LineError::TooLong(bytes) if bytes == 1 << 20));
    }

    #[test]
    fn lines_longer_than_a_read() {
        let mut input = vec![b'a'; 3 * READ_BYTES];
        input.extend_from_slice(b"\nb\n");
        let read = lines_of(&input, READ_BYTES);
        assert_eq!((read.len(), read[0].len(), read[1].as_slice()), (2, 3 * READ_BYTES, &b"b"[..]));
    }

    proptest! {
        #[test]
        fn reads_do_not_matter(
            input in prop::collection::vec(prop_oneof![3 => Just(b'\n'), 7 => any::<u8>()], 0..400),
            read_bytes in 1usize..50,
        ) {
            let mut expected: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
            if expected.last().is_some_and(|last| last.is_empty()) {
                expected.pop();
            }
            prop_assert_eq!(lines_of(&input, read_bytes), expected);
        }
    }
}
