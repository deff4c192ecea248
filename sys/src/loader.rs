//! libibverbs, opened at run time.
//!
//! [`Lib`] is a table with one function pointer per verb that is a real symbol; the verbs that are inline functions
//! in C are in [`crate::inline`]. The table is filled once, by `dlopen` and `dlsym`, so a program that never touches
//! an RDMA device runs on a machine without the library. Every required symbol that is missing is named in one error.
//! Plain `dlsym` gives the newest version of a symbol, which is the one the header describes.
//!
//! With the feature `link` the same table is filled from symbols that the dynamic linker resolved.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::fmt;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

use crate::bindings::{
    __be16, __be64, _compat_ibv_port_attr, ibv_ah, ibv_ah_attr, ibv_async_event, ibv_comp_channel,
    ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_event_type, ibv_gid, ibv_gid_entry,
    ibv_mr, ibv_pd, ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr, ibv_wc_status,
    ibv_wr_opcode,
};

/// The name by which the dynamic linker knows libibverbs.
pub const SONAME: &str = "libibverbs.so.1";

/// Why there is no [`Lib`]. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadError {
    /// The dynamic linker could not open the library.
    NotFound {
        /// The file or soname asked for.
        library: String,
        /// What the dynamic linker said (`dlerror(3)`).
        reason: String,
    },
    /// The library was opened, but is not a libibverbs, or too old a one.
    MissingSymbols {
        /// The file or soname asked for.
        library: String,
        /// Every required symbol that it lacks.
        symbols: Vec<&'static str>,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { library, reason } => write!(
                f,
                "cannot open {library}: {reason}; install libibverbs (package libibverbs1 or rdma-core)"
            ),
            Self::MissingSymbols { library, symbols } => write!(
                f,
                "{library} lacks {} required symbol(s): {}; install a newer libibverbs \
                 (package libibverbs1 or rdma-core)",
                symbols.len(),
                symbols.join(", ")
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// The type of one entry of the table.
macro_rules! entry {
    (fn($($arg:ty),*) $(-> $ret:ty)?) => { unsafe extern "C" fn($($arg),*) $(-> $ret)? };
}

/// From one list of verbs: the struct, the run-time loader, the link-time table, and the proof that each signature is
/// the header's.
macro_rules! verbs {
    (
        required { $($(#[$rdoc:meta])* $req:ident($($ra:ty),* $(,)?) $(-> $rr:ty)?;)* }
        optional { $($(#[$odoc:meta])* $opt:ident($($oa:ty),* $(,)?) $(-> $or:ty)?;)* }
    ) => {
        /// The verbs of one libibverbs, as C function pointers named like the functions.
        ///
        /// Calling one is unsafe as calling C is: pointers must be live and of the same library, and each function's
        /// manual page of the same name states the rest. Functions that return a pointer give null and set errno on
        /// failure. Those that return an integer give 0 or an errno value unless stated otherwise here.
        #[derive(Clone, Copy, Debug)]
        pub struct Lib {
            $($(#[$rdoc])* pub $req: entry!(fn($($ra),*) $(-> $rr)?),)*
            $($(#[$odoc])* pub $opt: Option<entry!(fn($($oa),*) $(-> $or)?)>,)*
        }

        /// The header and the table agree on every signature, or this does not compile.
        const _: () = {
            $(const _: entry!(fn($($ra),*) $(-> $rr)?) = crate::bindings::$req;)*
            $(const _: entry!(fn($($oa),*) $(-> $or)?) = crate::bindings::$opt;)*
        };

        impl Lib {
            /// Every symbol that a library must have to be loaded.
            pub const REQUIRED: &[&str] = &[$(stringify!($req)),*];

            /// Symbols whose absence only takes a capability away.
            pub const OPTIONAL: &[&str] = &[$(stringify!($opt)),*];

            /// Fills the table, or returns the required names for which `symbol` gave null.
            ///
            /// # Safety
            /// `symbol` returns null or the address of a function that has the signature of the verb of that name and
            /// stays loaded for ever.
            unsafe fn resolve(symbol: impl Fn(&CStr) -> *mut c_void) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    let $req = symbol(c_name!($req));
                    if $req.is_null() {
                        missing.push(stringify!($req));
                    }
                )*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    // SAFETY: not null, as just tested; the caller vouches for the signature.
                    $($req: unsafe { core::mem::transmute::<*mut c_void, entry!(fn($($ra),*) $(-> $rr)?)>($req) },)*
                    // SAFETY: null becomes `None`; the caller vouches for the signature of anything else.
                    $($opt: unsafe {
                        let address = symbol(c_name!($opt));
                        core::mem::transmute::<*mut c_void, Option<entry!(fn($($oa),*) $(-> $or)?)>>(address)
                    },)*
                })
            }

            /// The table of the symbols that the dynamic linker resolved when the program started.
            #[cfg(feature = "link")]
            fn linked() -> Self {
                Self {
                    $($req: crate::bindings::$req,)*
                    $($opt: Some(crate::bindings::$opt),)*
                }
            }
        }
    };
}

/// A symbol's name as a C string.
macro_rules! c_name {
    ($name:ident) => {
        const {
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("an identifier holds no NUL"),
            }
        }
    };
}

verbs! {
    required {
        /// Null-terminated array of the devices; the count is written through the pointer unless that is null. Where
        /// the kernel has no RDMA at all this is null with `ENOSYS`.
        ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        /// Frees the array; devices that were opened stay valid.
        ibv_free_device_list(*mut *mut ibv_device);
        /// The kernel's name of the device, such as `mlx5_0`; valid as long as the device is.
        ibv_get_device_name(*mut ibv_device) -> *const c_char;
        /// Opens a device.
        ibv_open_device(*mut ibv_device) -> *mut ibv_context;
        /// Closes a context; everything made from it must be gone.
        ibv_close_device(*mut ibv_context) -> c_int;
        /// Takes the oldest asynchronous event. Returns 0, or -1 with errno; blocks unless `async_fd` is non-blocking.
        ibv_get_async_event(*mut ibv_context, *mut ibv_async_event) -> c_int;
        /// Acknowledges an event; the object it names can be destroyed only then.
        ibv_ack_async_event(*mut ibv_async_event);
        /// Fills in the limits and abilities of the device.
        ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        /// Fills in a prefix of `ibv_port_attr`: use [`Lib::query_port`].
        ibv_query_port(*mut ibv_context, u8, *mut _compat_ibv_port_attr) -> c_int;
        /// Reads an entry of a port's GID table. Returns 0 or -1.
        ibv_query_gid(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
        /// Reads an entry of a port's P_Key table. Returns 0 or -1.
        ibv_query_pkey(*mut ibv_context, u8, c_int, *mut __be16) -> c_int;
        /// Allocates a protection domain.
        ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        /// Frees a protection domain; `EBUSY` while something uses it.
        ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        /// Registers memory (address, bytes, `ibv_access_flags`). Optional access flags must not be asked for: the C
        /// macro would choose another symbol for them.
        ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        /// Ends a registration. When it returns, no remote access through its keys can land any more.
        ibv_dereg_mr(*mut ibv_mr) -> c_int;
        /// Creates a completion channel: a file descriptor that tells when a queue gets entries.
        ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        /// Destroys a completion channel.
        ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        /// Creates a completion queue of at least so many entries (context, entries, cookie, channel or null, vector).
        ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        /// Destroys a completion queue; waits until its events are acknowledged.
        ibv_destroy_cq(*mut ibv_cq) -> c_int;
        /// Takes the oldest completion event. Returns 0 or -1; blocks unless the channel's fd is non-blocking.
        ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        /// Acknowledges so many completion events of the queue.
        ibv_ack_cq_events(*mut ibv_cq, c_uint);
        /// Creates a queue pair in RESET; the limits really given are written back.
        ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        /// Changes attributes and state of a queue pair; the mask is of `ibv_qp_attr_mask`.
        ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        /// Reads attributes back. A provider may fill in more than the mask asks for.
        ibv_query_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int, *mut ibv_qp_init_attr) -> c_int;
        /// Destroys a queue pair; waits until its events are acknowledged.
        ibv_destroy_qp(*mut ibv_qp) -> c_int;
        /// Creates an address handle.
        ibv_create_ah(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah;
        /// Destroys an address handle.
        ibv_destroy_ah(*mut ibv_ah) -> c_int;
        /// English name of a completion status; a static string for any value.
        ibv_wc_status_str(ibv_wc_status) -> *const c_char;
        /// English name of an asynchronous event; a static string for any value.
        ibv_event_type_str(ibv_event_type) -> *const c_char;
    }
    optional {
        /// The device's GUID in network byte order.
        ibv_get_device_guid(*mut ibv_device) -> __be64;
        /// Makes `fork` safe for registered memory; to be called before anything else.
        ibv_fork_init() -> c_int;
        /// Changes a registration (flags of `ibv_rereg_mr_flags`). Returns 0 or a value of `ibv_rereg_mr_err_code`.
        ibv_rereg_mr(*mut ibv_mr, c_int, *mut ibv_pd, *mut c_void, usize, c_int) -> c_int;
        /// 1 if the data of one such operation is placed in order, 0 if that is not promised. Since rdma-core 41.
        ibv_query_qp_data_in_order(*mut ibv_qp, ibv_wr_opcode, u32) -> c_int;
        /// Reads a GID table entry with its type; the last argument is the entry's size in bytes. Since rdma-core 32.
        _ibv_query_gid_ex(*mut ibv_context, u32, u32, *mut ibv_gid_entry, u32, usize) -> c_int;
    }
}

impl Lib {
    /// The libibverbs of this machine: opened at the first call, and the same answer ever after.
    ///
    /// # Errors
    /// [`LoadError`] if the library is not there or lacks a required symbol.
    pub fn load() -> Result<&'static Self, LoadError> {
        static LIB: OnceLock<Result<Lib, LoadError>> = OnceLock::new();
        LIB.get_or_init(Self::load_once)
            .as_ref()
            .map_err(Clone::clone)
    }

    #[cfg(feature = "link")]
    fn load_once() -> Result<Self, LoadError> {
        Ok(Self::linked())
    }

    #[cfg(not(feature = "link"))]
    fn load_once() -> Result<Self, LoadError> {
        // SAFETY: the soname stands for rdma-core's library, whose ABI the bindings describe and which keeps that ABI
        // as long as it keeps the soname.
        unsafe { Self::open(Path::new(SONAME)) }
    }

    /// Opens a libibverbs by its path, or by a soname that the dynamic linker looks up. It is never closed again,
    /// unless symbols are missing.
    ///
    /// # Errors
    /// [`LoadError`] if it cannot be opened or lacks a required symbol.
    ///
    /// # Safety
    /// Loading runs the library's initialisers, and its symbols that are named like verbs must be those verbs.
    pub unsafe fn open(path: &Path) -> Result<Self, LoadError> {
        let library = path.display().to_string();
        if cfg!(miri) {
            return Err(LoadError::NotFound {
                library,
                reason: "Miri cannot load libraries".into(),
            });
        }
        let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
            return Err(LoadError::NotFound {
                library,
                reason: "the path holds a NUL byte".into(),
            });
        };
        // SAFETY: a C string; the caller vouches for the library's initialisers.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(LoadError::NotFound {
                library,
                reason: dl_error(),
            });
        }
        // SAFETY: `dlsym` on an open handle gives null or an address in a library that stays open if this succeeds; the
        // caller vouches for what the symbols are.
        unsafe { Self::resolve(|symbol| libc::dlsym(handle, symbol.as_ptr())) }.map_err(|symbols| {
            // SAFETY: the handle is open and nothing of it was kept.
            unsafe { libc::dlclose(handle) };
            LoadError::MissingSymbols { library, symbols }
        })
    }

    /// Reads a port's attributes: `ibv_query_port(3)`, as 0 or an errno value.
    ///
    /// The exported symbol fills the part of the struct that old programs know, so all of it is zeroed first.
    ///
    /// # Safety
    /// `context` is live and of this library; `attr` can be written.
    pub unsafe fn query_port(
        &self,
        context: *mut ibv_context,
        port_num: u8,
        attr: *mut ibv_port_attr,
    ) -> c_int {
        // SAFETY: `attr` is writable for its whole size, of which the symbol writes a prefix; the caller keeps
        // `context` live. Zero is a value of every member.
        unsafe {
            attr.write_bytes(0, 1);
            (self.ibv_query_port)(context, port_num, attr.cast())
        }
    }
}

/// What the dynamic linker says about the failure that just happened on this thread.
fn dl_error() -> String {
    // SAFETY: no arguments; the C library keeps the text per thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the dynamic linker gives no reason".into();
    }
    // SAFETY: not null, hence a C string that is valid until the next call of this family on this thread.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
