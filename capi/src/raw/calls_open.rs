//! Opening, stopping, closing.

use std::ffi::c_char;
use std::io::stderr;
use std::path::Path;
use std::sync::Arc;

use smr::StartError;
use smr::config::{Config, ConfigError};
use tracing_subscriber::EnvFilter;

use super::callbacks::Callbacks;
use super::pointers::{Out, border, outside, sized, text};
use super::types::{MU_ABI_VERSION, MU_MODE_THREADED, MuCallbacks, MuHandle, MuOptions};
use crate::code::{Fault, MuResult, last, meaning};
use crate::instance::Instance;
use crate::table;

/// The version of the interface that this library has: a program goes on only if it is MU_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn mu_abi_version() -> u32 {
    MU_ABI_VERSION
}

/// What a result code means, in a few words. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn mu_strerror(code: MuResult) -> *const c_char {
    meaning(code).as_ptr()
}

/// The words of this thread's last call that did not end with MU_OK; empty if there was none. Good until the next
/// such call.
#[unsafe(no_mangle)]
pub extern "C" fn mu_last_error() -> *const c_char {
    last()
}

/// Writes what replicas say of themselves to standard error from now on, once per process. `filter` is "info", "warn",
/// "mu=debug" or the like.
///
/// # Safety
/// `filter` is NULL or a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_log(filter: *const c_char) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let filter = unsafe { text(filter, "filter") }?;
        let filter =
            EnvFilter::try_new(filter).map_err(|error| Fault::argument(error.to_string()))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(stderr)
            .with_target(false);
        log.try_init()
            .map_err(|error| Fault::misuse(error.to_string()))
    })
}

/// Fills in the defaults: threaded mode, id 0, a group that is there already.
///
/// # Safety
/// `options` is NULL or points to memory for the structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_options_init(options: *mut MuOptions) -> MuResult {
    border(|| {
        // SAFETY: as promised.
        let options = unsafe { Out::new(options, "options") }?;
        options.set(MuOptions {
            size: size_of::<MuOptions>(),
            mode: MU_MODE_THREADED,
            id: 0,
            form: 0,
        });
        Ok(())
    })
}

/// Starts a replica of the configuration in a file.
///
/// # Safety
/// `path` is NULL or a text; the others are NULL or point to their structures, whose sizes are right.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_open_file(
    path: *const c_char,
    options: *const MuOptions,
    callbacks: *const MuCallbacks,
    handle: *mut MuHandle,
) -> MuResult {
    // SAFETY: as promised.
    let config = || Ok(Config::from_file(unsafe { text(path, "path") }?));
    // SAFETY: as promised.
    outside(|| unsafe { open(config, options, callbacks, handle) })
}

/// Starts a replica of the configuration in a text. A relative `psk_file` in it is looked for in `folder`; NULL is
/// the current one.
///
/// # Safety
/// As for `mu_open_file`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mu_open_text(
    config: *const c_char,
    folder: *const c_char,
    options: *const MuOptions,
    callbacks: *const MuCallbacks,
    handle: *mut MuHandle,
) -> MuResult {
    let config = || {
        // SAFETY: as promised.
        let config = unsafe { text(config, "config") }?;
        let folder = match folder.is_null() {
            true => "",
            // SAFETY: as promised.
            false => unsafe { text(folder, "folder") }?,
        };
        Ok(Config::from_toml_in(config, "the text", Path::new(folder)))
    };
    // SAFETY: as promised.
    outside(|| unsafe { open(config, options, callbacks, handle) })
}

/// # Safety
/// As for `mu_open_file`.
unsafe fn open(
    config: impl FnOnce() -> Result<Result<Config, ConfigError>, Fault>,
    options: *const MuOptions,
    callbacks: *const MuCallbacks,
    handle: *mut MuHandle,
) -> Result<(), Fault> {
    // SAFETY: as promised.
    let (handle, options, callbacks) = unsafe {
        let handle = Out::new(handle, "handle")?;
        handle.set(0);
        let options = sized(options, "options")?;
        (handle, options, sized(callbacks, "callbacks")?)
    };
    let callbacks = Callbacks::new(callbacks)?;
    let form = match options.form {
        0 => false,
        1 => true,
        form => {
            return Err(Fault::argument(format!(
                "options.form is {form}, not 0 or 1"
            )));
        }
    };
    let config = config()?.map_err(StartError::from)?;
    let instance = Instance::open(config, (options.mode, options.id, form), callbacks)?;
    handle.set(table::insert(Arc::new(instance)));
    Ok(())
}

/// Stops the replica; the others go on. What is in flight gets its outcome, and tickets can still be polled. In step
/// mode, if another thread is inside of the replica, that one does it at its next turn.
#[unsafe(no_mangle)]
pub extern "C" fn mu_stop(handle: MuHandle) -> MuResult {
    outside(|| {
        table::get(handle)?.stop();
        Ok(())
    })
}

/// Stops the replica if it runs, waits for its threads and frees what it has. When this returns no callback runs any
/// more, and every later call with the handle is answered with MU_CLOSED. Calls that other threads are inside of get
/// their outcome.
#[unsafe(no_mangle)]
pub extern "C" fn mu_close(handle: MuHandle) -> MuResult {
    outside(|| {
        table::remove(handle)?.close();
        Ok(())
    })
}
