//! From pointers to references and back, and from whatever happens inside to a code.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::code::{Fault, MU_INTERNAL, MU_OK, MuResult, keep};
use crate::scope;

/// Runs a call's body. No unwinding gets past this.
pub(super) fn border(body: impl FnOnce() -> Result<(), Fault>) -> MuResult {
    let ended = || {
        let fault = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => return MU_OK,
            Ok(Err(fault)) => fault,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Fault::new(MU_INTERNAL, text.unwrap_or("a panic without words"))
            }
        };
        keep(fault.text);
        fault.code
    };
    catch_unwind(AssertUnwindSafe(ended)).unwrap_or(MU_INTERNAL)
}

/// The same for calls that a callback must not make.
pub(super) fn outside(body: impl FnOnce() -> Result<(), Fault>) -> MuResult {
    border(|| match scope::is_inside() {
        true => Err(Fault::misuse(
            "called from inside of a callback, which must not wait for its own replica",
        )),
        false => body(),
    })
}

fn null(name: &str) -> Fault {
    Fault::argument(format!("{name} is NULL"))
}

fn misplaced(name: &str) -> Fault {
    Fault::argument(format!("{name} is not aligned"))
}

/// Where a call puts its result.
pub(super) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// # Safety
    /// If it is neither NULL nor misplaced, it points to memory for a `T` until the call returns.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Fault> {
        match pointer {
            pointer if pointer.is_null() => Err(null(name)),
            pointer if !pointer.is_aligned() => Err(misplaced(name)),
            pointer => Ok(Self(pointer)),
        }
    }

    pub(super) fn set(&self, value: T) {
        // SAFETY: as `new` was promised.
        unsafe { self.0.write(value) }
    }
}

/// A structure that the program filled in, and whose first member is its size.
///
/// # Safety
/// If it is neither NULL nor misplaced, it points to at least a `size_t`, and to as many bytes as that says.
pub(super) unsafe fn sized<T: Copy>(pointer: *const T, name: &str) -> Result<T, Fault> {
    if pointer.is_null() {
        return Err(null(name));
    }
    if !pointer.is_aligned() {
        return Err(misplaced(name));
    }
    // SAFETY: the size stands first in every structure that this is used for, and it is there.
    let size = unsafe { pointer.cast::<usize>().read() };
    if size < size_of::<T>() {
        return Err(Fault::argument(format!(
            "{name}.size is {size}, and the structure has {} bytes: set it with sizeof",
            size_of::<T>()
        )));
    }
    // SAFETY: there are at least as many bytes.
    Ok(unsafe { pointer.read() })
}

/// Bytes; NULL is no bytes if there are none.
///
/// # Safety
/// If it is not NULL, it points to `len` bytes that nobody changes until the call returns.
pub(super) unsafe fn bytes<'a>(data: *const u8, len: usize, name: &str) -> Result<&'a [u8], Fault> {
    match (data.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(null(name)),
        (false, len) if len > isize::MAX as usize => {
            Err(Fault::argument(format!("{name} has {len} bytes")))
        }
        // SAFETY: as promised.
        (false, len) => Ok(unsafe { std::slice::from_raw_parts(data, len) }),
    }
}

/// A text.
///
/// # Safety
/// If it is not NULL, it points to bytes that end with 0 and that nobody changes until the call returns.
pub(super) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, Fault> {
    if text.is_null() {
        return Err(null(name));
    }
    // SAFETY: as promised.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .map_err(|error| Fault::argument(format!("{name} is not UTF-8: {error}")))
}

/// The program's buffer for bytes that are copied to it. It may be uninitialised, so there is no reference to it.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    data: *mut u8,
    capacity: usize,
}

impl Buffer {
    /// # Safety
    /// If it is not NULL, it points to memory for `capacity` bytes until the call returns.
    pub(super) unsafe fn new(data: *mut u8, capacity: usize, name: &str) -> Result<Self, Fault> {
        if data.is_null() && capacity > 0 {
            return Err(null(name));
        }
        Ok(Self { data, capacity })
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Copies what fits.
    pub(super) fn put(&self, bytes: &[u8]) {
        let count = bytes.len().min(self.capacity);
        if count > 0 {
            // SAFETY: as `new` was promised; it is no memory of this library, so the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.data, count) };
        }
    }

    /// Copies a text and a 0 behind it, as much as fits.
    pub(super) fn put_text(&self, text: &str) -> Result<(), Fault> {
        let mut bytes = text.as_bytes().to_vec();
        let fits = bytes.len() < self.capacity;
        if !fits {
            bytes.truncate(self.capacity.saturating_sub(1));
        }
        bytes.push(0);
        self.put(&bytes);
        match fits {
            true => Ok(()),
            false => Err(Fault::truncated(text.len() + 1, self.capacity)),
        }
    }
}

/// Whether bytes that are read and memory that is written to have a byte in common.
fn overlap(bytes: &[u8], address: usize, len: usize) -> bool {
    let start = bytes.as_ptr().addr();
    let apart =
        start >= address.saturating_add(len) || address >= start.saturating_add(bytes.len());
    !(apart || bytes.is_empty() || len == 0)
}

/// Where a reply goes. NULL in the place of one: the reply is not wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MuReply {
    /// In: the program's buffer; may be NULL if `capacity` is 0.
    pub data: *mut u8,
    /// In: its bytes.
    pub capacity: usize,
    /// Out: bytes of the whole reply. If that is more than `capacity`, only so much was copied, and the code is
    /// MU_TRUNCATED.
    pub len: usize,
    /// Out: index of the entry that carried the command; 0 for a barrier.
    pub index: u64,
}

/// A reply that is on its way to the program.
pub(super) struct ReplyTo(Option<(Buffer, *mut MuReply)>);

impl ReplyTo {
    /// # Safety
    /// If it is neither NULL nor misplaced, it points to a reply whose `data` and `capacity` are as for [`Buffer`].
    pub(super) unsafe fn new(reply: *mut MuReply, command: &[u8]) -> Result<Self, Fault> {
        if reply.is_null() {
            return Ok(Self(None));
        }
        if !reply.is_aligned() {
            return Err(misplaced("reply"));
        }
        // SAFETY: as promised. Only what the program sets is read, the rest may be uninitialised.
        let (data, capacity) = unsafe { ((*reply).data, (*reply).capacity) };
        // SAFETY: as promised.
        let buffer = unsafe { Buffer::new(data, capacity, "reply.data") }?;
        if overlap(command, data.addr(), capacity) {
            return Err(Fault::argument("data and reply.data overlap"));
        }
        if overlap(command, reply.addr(), size_of::<MuReply>()) {
            return Err(Fault::argument("data and reply overlap"));
        }
        let this = Self(Some((buffer, reply)));
        this.set(0, 0);
        Ok(this)
    }

    fn set(&self, index: u64, len: usize) {
        if let Some((_, reply)) = self.0 {
            // SAFETY: it is there, as `new` was promised.
            unsafe {
                (*reply).index = index;
                (*reply).len = len;
            }
        }
    }

    pub(super) fn put(&self, index: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.set(index, bytes.len());
        let Some((buffer, _)) = self.0 else {
            return Ok(());
        };
        buffer.put(bytes);
        match bytes.len() <= buffer.capacity() {
            true => Ok(()),
            false => Err(Fault::truncated(bytes.len(), buffer.capacity())),
        }
    }
}
