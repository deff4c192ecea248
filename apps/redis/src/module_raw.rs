//! The module functions of redis-server that a node uses, and what the server calls in return.
//!
//! Their declarations are written by hand from Redis's documentation. The server hands over a function that finds the
//! others by name, in the first word of the context of `RedisModule_OnLoad`; the pointers stay valid for the life of
//! the process, for the module cannot be unloaded.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_longlong, c_ulonglong, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use crate::commands::{self, Verdict};
use crate::{hooks_raw, keeper, module, turn};

type Ctx = *mut c_void;
type Text = *mut c_void;
type CallReply = *mut c_void;
type CommandFn = extern "C" fn(Ctx, *mut Text, c_int) -> c_int;
type EventFn = extern "C" fn(Ctx, Event, u64, *mut c_void);

/// What a server tells of (`RedisModuleEvent`): its number, and the version of the data that comes with it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Event {
    id: u64,
    version: u64,
}

/// The role has changed, and to what.
const ROLE_CHANGED: Event = Event { id: 0, version: 1 };
const NOW_PRIMARY: u64 = 0;

const OK: c_int = 0;
const FAILED: c_int = 1;
/// The filter does not see what this module calls.
const FILTER_NOT_OWN: c_int = 1;

/// Declares the functions, and a way to find them all.
macro_rules! api {
    ($($name:ident as $symbol:literal: $type:ty;)+) => {
        struct Api { $($name: $type,)+ }

        impl Api {
            /// # Safety
            /// `ctx` is the context of `RedisModule_OnLoad`.
            unsafe fn find(ctx: Ctx) -> Result<Self, &'static str> {
                type Get = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
                // SAFETY: the first word of that context is this function.
                let get: Get = unsafe { *ctx.cast::<Get>() };
                Ok(Self {
                    $($name: {
                        let mut found: *mut c_void = null_mut();
                        // SAFETY: a text that ends with a zero, and room for a pointer.
                        unsafe { get($symbol.as_ptr(), &raw mut found) };
                        if found.is_null() {
                            return Err($symbol.to_str().unwrap_or("a module function"));
                        }
                        // SAFETY: the server's function of this name has this type.
                        unsafe { std::mem::transmute::<*mut c_void, $type>(found) }
                    },)+
                })
            }
        }
    };
}

api! {
    set_attributes as c"RedisModule_SetModuleAttribs": unsafe extern "C" fn(Ctx, *const c_char, c_int, c_int);
    create_command as c"RedisModule_CreateCommand":
        unsafe extern "C" fn(Ctx, *const c_char, CommandFn, *const c_char, c_int, c_int, c_int) -> c_int;
    register_filter as c"RedisModule_RegisterCommandFilter":
        unsafe extern "C" fn(Ctx, extern "C" fn(*mut c_void), c_int) -> *mut c_void;
    filter_count as c"RedisModule_CommandFilterArgsCount": unsafe extern "C" fn(*mut c_void) -> c_int;
    filter_get as c"RedisModule_CommandFilterArgGet": unsafe extern "C" fn(*mut c_void, c_int) -> Text;
    filter_replace as c"RedisModule_CommandFilterArgReplace": unsafe extern "C" fn(*mut c_void, c_int, Text) -> c_int;
    filter_insert as c"RedisModule_CommandFilterArgInsert": unsafe extern "C" fn(*mut c_void, c_int, Text) -> c_int;
    create_string as c"RedisModule_CreateString": unsafe extern "C" fn(Ctx, *const c_char, usize) -> Text;
    free_string as c"RedisModule_FreeString": unsafe extern "C" fn(Ctx, Text);
    string as c"RedisModule_StringPtrLen": unsafe extern "C" fn(Text, *mut usize) -> *const c_char;
    call as c"RedisModule_Call": unsafe extern "C" fn(Ctx, *const c_char, *const c_char, ...) -> CallReply;
    replicate as c"RedisModule_Replicate": unsafe extern "C" fn(Ctx, *const c_char, *const c_char, ...) -> c_int;
    reply_type as c"RedisModule_CallReplyType": unsafe extern "C" fn(CallReply) -> c_int;
    reply_len as c"RedisModule_CallReplyLength": unsafe extern "C" fn(CallReply) -> usize;
    reply_at as c"RedisModule_CallReplyArrayElement": unsafe extern "C" fn(CallReply, usize) -> CallReply;
    reply_text as c"RedisModule_CallReplyStringPtr": unsafe extern "C" fn(CallReply, *mut usize) -> *const c_char;
    reply_integer as c"RedisModule_CallReplyInteger": unsafe extern "C" fn(CallReply) -> c_longlong;
    reply_free as c"RedisModule_FreeCallReply": unsafe extern "C" fn(CallReply);
    say_error as c"RedisModule_ReplyWithError": unsafe extern "C" fn(Ctx, *const c_char) -> c_int;
    say_simple as c"RedisModule_ReplyWithSimpleString": unsafe extern "C" fn(Ctx, *const c_char) -> c_int;
    say_integer as c"RedisModule_ReplyWithLongLong": unsafe extern "C" fn(Ctx, c_longlong) -> c_int;
    context as c"RedisModule_GetDetachedThreadSafeContext": unsafe extern "C" fn(Ctx) -> Ctx;
    lock as c"RedisModule_ThreadSafeContextLock": unsafe extern "C" fn(Ctx);
    try_lock as c"RedisModule_ThreadSafeContextTryLock": unsafe extern "C" fn(Ctx) -> c_int;
    unlock as c"RedisModule_ThreadSafeContextUnlock": unsafe extern "C" fn(Ctx);
    subscribe as c"RedisModule_SubscribeToServerEvent": unsafe extern "C" fn(Ctx, Event, EventFn) -> c_int;
    register_info as c"RedisModule_RegisterInfoFunc":
        unsafe extern "C" fn(Ctx, extern "C" fn(*mut c_void, c_int)) -> c_int;
    info_section as c"RedisModule_InfoAddSection": unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
    info_text as c"RedisModule_InfoAddFieldCString":
        unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> c_int;
    info_number as c"RedisModule_InfoAddFieldULongLong":
        unsafe extern "C" fn(*mut c_void, *const c_char, c_ulonglong) -> c_int;
}

static API: OnceLock<Api> = OnceLock::new();

fn api() -> &'static Api {
    API.get()
        .expect("the module is loaded before anything of it is called")
}

/// The server's way in. It is called once, on the server's main thread, before any data is loaded.
///
/// # Safety
/// Called by redis-server only.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn RedisModule_OnLoad(ctx: Ctx, _: *mut Text, _: c_int) -> c_int {
    // SAFETY: this is that context.
    match unsafe { Api::find(ctx) } {
        Ok(found) => drop(API.set(found)),
        Err(missing) => {
            eprintln!("mu: this server has no {missing}: Redis 7.0 is needed");
            return FAILED;
        }
    }
    let api = api();
    // SAFETY: the server's functions with the context of this call, texts that end with a zero, and functions that
    // stay.
    unsafe {
        (api.set_attributes)(ctx, c"mu".as_ptr(), 1, 1);
        let commands: [(&CStr, CommandFn, &CStr); 2] = [
            (
                c"mu.refuse",
                refuse,
                c"readonly fast allow-loading allow-stale",
            ),
            (c"mu.acl", users, c"write admin deny-script"),
        ];
        for (name, function, flags) in commands {
            if (api.create_command)(ctx, name.as_ptr(), function, flags.as_ptr(), 0, 0, 0) != OK {
                return FAILED;
            }
        }
        if (api.register_filter)(ctx, filter, FILTER_NOT_OWN).is_null()
            || (api.register_info)(ctx, info) != OK
            || (api.subscribe)(ctx, ROLE_CHANGED, role_changed) != OK
        {
            return FAILED;
        }
        DETACHED.get_or_init(|| Detached((api.context)(ctx)));
        let expected = hooks_raw::fdatasync as unsafe extern "C" fn(c_int) -> c_int as *mut c_void;
        if libc::dlsym(libc::RTLD_DEFAULT, c"fdatasync".as_ptr()) != expected {
            eprintln!(
                "mu: the shared object is loaded as a module and not preloaded: start the server with mu redis"
            );
            return FAILED;
        }
    }
    turn::enter();
    hooks_raw::watch_forks();
    match module::start() {
        Ok(()) => OK,
        Err(error) => {
            eprintln!("mu: {error:#}");
            FAILED
        }
    }
}

/// The server tells of its role while it changes it, under its global lock.
extern "C" fn role_changed(_: Ctx, _: Event, now: u64, _: *mut c_void) {
    if now == NOW_PRIMARY {
        keeper::became_primary();
    }
}

/// The bytes of the server's string.
///
/// # Safety
/// `text` lives for as long as the result is used.
unsafe fn bytes<'a>(text: Text) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: the server's string, and room for its length.
    let at = unsafe { (api().string)(text, &raw mut len) };
    // SAFETY: so many bytes of it, as the caller promises.
    unsafe { std::slice::from_raw_parts(at.cast(), len) }
}

fn string(bytes: &[u8]) -> Text {
    // SAFETY: the server copies the bytes; a string without a context is the caller's.
    unsafe { (api().create_string)(null_mut(), bytes.as_ptr().cast(), bytes.len()) }
}

/// Before each command of a client, a script or the replication link.
extern "C" fn filter(command: *mut c_void) {
    let api = api();
    turn::executed();
    // SAFETY: the server's functions with this call's command; strings that it takes over.
    unsafe {
        let count = (api.filter_count)(command);
        let argument = |n: usize| match (n as c_int) < count {
            true => bytes((api.filter_get)(command, n as c_int)),
            false => &[],
        };
        match commands::judge(count as usize, argument) {
            Verdict::Pass => {}
            Verdict::Users => {
                (api.filter_replace)(command, 0, string(b"mu.acl"));
            }
            Verdict::Password => {
                // Copied, for the server gives the argument back when another one takes its place.
                let rule = match bytes((api.filter_get)(command, 3)) {
                    [] => b"nopass".to_vec(),
                    password => [b">", password].concat(),
                };
                for (n, word) in [&b"mu.acl"[..], b"setuser", b"default", &rule]
                    .into_iter()
                    .enumerate()
                {
                    (api.filter_replace)(command, n as c_int, string(word));
                }
                if rule[0] == b'>' {
                    (api.filter_insert)(command, 3, string(b"resetpass"));
                }
            }
            Verdict::RefuseAtFollower(_) if module::is_primary() => {}
            Verdict::Refuse(why) | Verdict::RefuseAtFollower(why) => {
                (api.filter_insert)(command, 1, string(why.as_bytes()));
                (api.filter_replace)(command, 0, string(b"mu.refuse"));
            }
        }
    }
}

fn texts<'a>(argv: *mut Text, argc: c_int) -> Vec<&'a [u8]> {
    // SAFETY: the server's arguments, which live as long as the command runs.
    let argv = unsafe { std::slice::from_raw_parts(argv, argc as usize) };
    // SAFETY: as above.
    argv.iter().map(|text| unsafe { bytes(*text) }).collect()
}

extern "C" fn refuse(ctx: Ctx, argv: *mut Text, argc: c_int) -> c_int {
    let arguments = texts(argv, argc);
    let why = arguments.get(1).map_or(&b"refused"[..], |why| why);
    say(
        ctx,
        &Reply::Error(format!("ERR {}", String::from_utf8_lossy(why))),
    );
    OK
}

extern "C" fn users(ctx: Ctx, argv: *mut Text, argc: c_int) -> c_int {
    let arguments = texts(argv, argc);
    let reply = module::change_users(&Server(ctx), &arguments[1..]);
    say(ctx, &reply);
    OK
}

fn say(ctx: Ctx, reply: &Reply) {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
    // SAFETY: the server's functions with this call's context; it copies the texts.
    unsafe {
        match reply {
            Reply::Error(why) => (api().say_error)(ctx, text(why.as_bytes()).as_ptr()),
            Reply::Integer(number) => (api().say_integer)(ctx, *number),
            Reply::Text(bytes) => (api().say_simple)(ctx, text(bytes).as_ptr()),
            Reply::Array(_) | Reply::Nothing => (api().say_simple)(ctx, c"OK".as_ptr()),
        };
    }
}

extern "C" fn info(ctx: *mut c_void, for_crash_report: c_int) {
    if for_crash_report != 0 {
        // The thread that crashed may hold a lock that this would wait for.
        return;
    }
    // SAFETY: the server's functions with this call's context; it copies the texts.
    unsafe { (api().info_section)(ctx, c"".as_ptr()) };
    module::info(&mut |name: &CStr, value: module::Figure<'_>| {
        // SAFETY: as above.
        unsafe {
            match value {
                module::Figure::Number(value) => (api().info_number)(ctx, name.as_ptr(), value),
                module::Figure::Text(text) => {
                    let text = CString::new(text).unwrap_or_default();
                    (api().info_text)(ctx, name.as_ptr(), text.as_ptr())
                }
            };
        }
    });
}

/// What the server answered.
#[derive(Debug)]
pub(crate) enum Reply {
    Text(Vec<u8>),
    Error(String),
    Integer(i64),
    Array(Vec<Reply>),
    Nothing,
}

impl Reply {
    /// # Safety
    /// `reply` is a reply that is not freed yet.
    unsafe fn of(reply: CallReply) -> Self {
        let api = api();
        if reply.is_null() {
            return Self::Error("the command was not taken".into());
        }
        let text = || {
            let mut len = 0;
            // SAFETY: the reply, and room for a length.
            let at = unsafe { (api.reply_text)(reply, &raw mut len) };
            if at.is_null() {
                return Vec::new();
            }
            // SAFETY: so many bytes, valid until the reply is freed.
            unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) }.to_vec()
        };
        // SAFETY: the reply.
        match unsafe { (api.reply_type)(reply) } {
            0 => Self::Text(text()),
            1 => Self::Error(String::from_utf8_lossy(&text()).trim_end().to_owned()),
            // SAFETY: the reply, which is an integer.
            2 => Self::Integer(unsafe { (api.reply_integer)(reply) }),
            3 => {
                // SAFETY: the reply, which is an array, and its elements, which it owns.
                let each = |n| unsafe { Self::of((api.reply_at)(reply, n)) };
                // SAFETY: as above.
                let len = unsafe { (api.reply_len)(reply) };
                Self::Array((0..len).map(each).collect())
            }
            _ => Self::Nothing,
        }
    }
}

/// The server, while its global lock is held by this thread: on its main thread in a callback, or in [`with_server`].
pub(crate) struct Server(Ctx);

impl Server {
    /// Runs a command. `as_user`: as the client that is being served may.
    pub(crate) fn call(&self, arguments: &[&[u8]], as_user: bool) -> Reply {
        let name = CString::new(arguments[0]).unwrap_or_default();
        let strings: Vec<Text> = arguments[1..].iter().map(|bytes| string(bytes)).collect();
        let format = if as_user { c"vCE" } else { c"vE" };
        // SAFETY: the lock is held; `v` takes an array of strings and their number, as a long; freed once each.
        unsafe {
            let reply = (api().call)(
                self.0,
                name.as_ptr(),
                format.as_ptr(),
                strings.as_ptr(),
                strings.len(),
            );
            let told = Reply::of(reply);
            if !reply.is_null() {
                (api().reply_free)(reply);
            }
            for string in strings {
                (api().free_string)(null_mut(), string);
            }
            told
        }
    }

    /// Puts a command into the stream of effects.
    pub(crate) fn replicate(&self, arguments: &[&[u8]]) {
        let name = CString::new(arguments[0]).unwrap_or_default();
        let strings: Vec<Text> = arguments[1..].iter().map(|bytes| string(bytes)).collect();
        // SAFETY: as above; the server keeps the strings by counting them.
        unsafe {
            (api().replicate)(
                self.0,
                name.as_ptr(),
                c"v".as_ptr(),
                strings.as_ptr(),
                strings.len() as c_long,
            );
            for string in strings {
                (api().free_string)(null_mut(), string);
            }
        }
    }
}

/// The context of the node's threads: the module's own, so that the filter leaves alone what they call. Used only with
/// the server's global lock held.
struct Detached(Ctx);

// SAFETY: the server lets any thread use it, one at a time, which its global lock sees to.
unsafe impl Send for Detached {}
// SAFETY: as above.
unsafe impl Sync for Detached {}

static DETACHED: OnceLock<Detached> = OnceLock::new();

fn detached() -> Ctx {
    DETACHED.get().expect("made when the module was loaded").0
}

/// Runs something with the server's global lock. Not on the server's own thread, and never with a lock that its thread
/// waits for.
pub(crate) fn with_server<R>(run: impl FnOnce(&Server) -> R) -> R {
    let ctx = detached();
    // SAFETY: the server's lock, taken and given back by this thread.
    unsafe { (api().lock)(ctx) };
    let result = run(&Server(ctx));
    // SAFETY: as above.
    unsafe { (api().unlock)(ctx) };
    result
}

/// The same if the lock can be had before `give_up` says that it is no use any more. `pause` passes between two tries.
pub(crate) fn try_with_server<R>(
    give_up: impl Fn() -> bool,
    pause: impl Fn(),
    run: impl FnOnce(&Server) -> R,
) -> Option<R> {
    let ctx = detached();
    // SAFETY: the server's lock, taken and given back by this thread.
    while unsafe { (api().try_lock)(ctx) } != OK {
        if give_up() {
            return None;
        }
        pause();
    }
    let result = run(&Server(ctx));
    // SAFETY: as above.
    unsafe { (api().unlock)(ctx) };
    Some(result)
}
