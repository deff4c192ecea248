//! What a run did: a hash over everything, and lines for people if asked for.

/// Gets the lines.
pub(crate) type Sink = Box<dyn FnMut(&str) + Send>;

/// The running hash (FNV-1a over 64-bit words, folded so that high bits count), and where lines go.
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    sink: Option<Sink>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            sink: None,
        }
    }

    pub(crate) fn set_sink(&mut self, sink: Sink) {
        self.sink = Some(sink);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    #[inline]
    pub(crate) fn word(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        self.hash ^= self.hash >> 29;
    }

    #[inline]
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.word(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.word(u64::from_le_bytes(last));
    }

    /// One event: into the hash, and as a line.
    #[inline]
    pub(crate) fn event(&mut self, now: u64, words: [u64; 4], line: impl FnOnce() -> String) {
        self.events += 1;
        self.word(now);
        words.iter().for_each(|w| self.word(*w));
        self.line(now, line);
    }

    /// A line alone.
    #[inline]
    pub(crate) fn line(&mut self, now: u64, line: impl FnOnce() -> String) {
        if let Some(sink) = &mut self.sink {
            sink(&format!("{:>12} ns  {}", now, line()));
        }
    }
}
