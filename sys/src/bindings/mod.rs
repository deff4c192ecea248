//! The committed bindings of the architecture that is built for.
//!
//! They are generated (see `build.rs`); their compile-time constants check size, alignment and every member's offset,
//! so that building is the layout test. An architecture without a file of its own can borrow one by `--cfg
//! mu_sys_bindings="x86_64"` where it has the same layout, or generate one with the feature `bindgen`.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]

#[cfg(feature = "bindgen")]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(not(feature = "bindgen"))]
#[cfg(any(
    mu_sys_bindings = "x86_64",
    all(target_arch = "x86_64", not(mu_sys_bindings = "aarch64"))
))]
include!("x86_64.rs");

#[cfg(not(feature = "bindgen"))]
#[cfg(any(
    mu_sys_bindings = "aarch64",
    all(target_arch = "aarch64", not(mu_sys_bindings = "x86_64"))
))]
include!("aarch64.rs");

#[cfg(not(any(
    feature = "bindgen",
    mu_sys_bindings = "x86_64",
    mu_sys_bindings = "aarch64",
    target_arch = "x86_64",
    target_arch = "aarch64"
)))]
compile_error!(
    "mu-sys has no committed libibverbs bindings for this architecture: build with its feature \
     `bindgen` (needs libclang and the headers of libibverbs), or, where the layout is the same, \
     with RUSTFLAGS='--cfg mu_sys_bindings=\"x86_64\"' (or \"aarch64\")"
);
