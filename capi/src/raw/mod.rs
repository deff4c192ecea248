//! The border: everything that handles what a C program passes.

mod callbacks;
pub mod calls_data;
pub mod calls_open;
pub mod calls_propose;
pub mod calls_state;
pub mod pointers;
pub mod types;

pub(crate) use callbacks::Callbacks;
pub(crate) use types::{
    MU_APPLY_LEADER, MU_APPLY_REPLAY, MU_MODE_STEP, MU_MODE_THREADED, MU_NO_LEADER, MuRole,
};
