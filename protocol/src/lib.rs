//! Mu itself; knows only the verbs traits.
#![forbid(unsafe_code)]
