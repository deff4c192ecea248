//! Cutting a stream into frames: four bytes of length, little-endian, then so many bytes.
//!
//! The length is compared with the limit before anything is done with it, and the buffer never holds more than one
//! frame of the largest size. Whoever is not authenticated makes us hold half a kilobyte.

use std::io::{self, Read};

const LENGTH_BYTES: usize = 4;

/// A frame longer than the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooBig;

/// Puts a frame at the end of `out`.
pub(super) fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("frames are short");
    out.extend_from_slice(&len.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// What came in and is not yet taken as frames.
pub(super) struct Reader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    pub(super) fn new(frame_bytes_max: usize) -> Self {
        Self {
            buffer: vec![0; LENGTH_BYTES + frame_bytes_max],
            start: 0,
            end: 0,
        }
    }

    /// The same stream with another limit; what came in already stays.
    pub(super) fn raise(&mut self, frame_bytes_max: usize) {
        let bytes = LENGTH_BYTES + frame_bytes_max;
        assert!(bytes >= self.buffer.len(), "a limit only grows");
        self.buffer.resize(bytes, 0);
    }

    /// Reads once, as much as there is room for; 0 at the end of the stream. Take all frames before.
    pub(super) fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        assert!(self.end < self.buffer.len(), "a whole frame was not taken");
        let read = from.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// Whether [`next`](Self::next) has one to give.
    pub(super) fn has_frame(&self) -> Result<bool, TooBig> {
        Ok(self.frame_end()?.is_some())
    }

    /// Takes the next frame if it is there.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TooBig> {
        let Some(end) = self.frame_end()? else {
            return Ok(None);
        };
        let start = self.start + LENGTH_BYTES;
        self.start = end;
        Ok(Some(&self.buffer[start..end]))
    }

    fn frame_end(&self) -> Result<Option<usize>, TooBig> {
        let rest = &self.buffer[self.start..self.end];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.buffer.len() - LENGTH_BYTES {
            return Err(TooBig);
        }
        Ok((rest.len() >= length).then_some(self.start + LENGTH_BYTES + length))
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}
