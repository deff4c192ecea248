//! What callbacks write to and read from.

use super::pointers::{Buffer, Out, border, bytes};
use super::types::{MuSink, MuSource};
use crate::code::MuResult;
use crate::scope;

/// Appends to a sink. Only inside of the callback that got it.
///
/// # Safety
/// `data` is NULL or points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_write(sink: MuSink, data: *const u8, len: usize) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        scope::write(sink, unsafe { bytes(data, len, "data") }?)
    })
}

/// Copies at most `capacity` bytes out of a source and says how many; 0 at its end. Only inside of the callback that
/// got it.
///
/// # Safety
/// `data` is NULL or points to memory for `capacity` bytes, `count` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_read(
    source: MuSource,
    data: *mut u8,
    capacity: usize,
    count: *mut usize,
) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let (buffer, count) = unsafe {
            let buffer = Buffer::new(data, capacity, "data")?;
            (buffer, Out::new(count, "count")?)
        };
        count.set(0);
        scope::read(source, capacity, |bytes| {
            buffer.put(bytes);
            count.set(bytes.len());
        })
    })
}

/// How many bytes a source still has. Only inside of the callback that got it.
///
/// # Safety
/// `count` is NULL or points to memory for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_left(source: MuSource, count: *mut usize) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let count = unsafe { Out::new(count, "count") }?;
        count.set(scope::left(source)?);
        Ok(())
    })
}
