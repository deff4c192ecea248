//! An unmodified redis-server on mu.
//!
//! This is one shared object, which `mu redis` preloads into redis-server and which the server also loads as a module.
//! With `appendonly yes` and `appendfsync always` Redis executes the commands of a turn of its event loop, writes what
//! they did to the append-only file, flushes that, and only then sends replies; if the flush fails it ends. Here the
//! flush is a proposal: it returns when the bytes are decided by mu's log. They are Redis's own stream of effects, in
//! which a random choice or a clock is a plain write, and every other node's server obeys them as a replica obeys its
//! primary.
//!
//! | file | what it is |
//! |---|---|
//! | `hooks_raw` | the C library's functions that the server calls |
//! | `descriptors` | which descriptor is the append-only file, and which a client |
//! | `turn` | a turn of the event loop: the two rules that make replies safe |
//! | `engine`, `effects` | the replica, and the stream as its state machine |
//! | `node` | what belongs together, the polling thread, and how a node ends |
//! | `feed`, `feeder` | the decided bytes on their way into a follower's server |
//! | `keeper` | a follower becomes a primary |
//! | `module_raw`, `module` | the module: users, INFO, datasets for others |
//! | `commands` | commands that are not Redis's business alone |
//! | `sentinel` | where the primary is, for clients |
//!
//! What is replicated and what is not, and how to run it, stands in `docs/redis.md`.

mod commands;
mod descriptors;
mod effects;
mod engine;
mod feed;
mod feeder;
// In a test program these functions would be the program's own.
#[cfg_attr(test, allow(dead_code))]
mod hooks_raw;
mod keeper;
mod module;
mod module_raw;
mod node;
mod report;
mod resp;
mod sentinel;
mod setup;
mod turn;
