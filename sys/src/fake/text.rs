//! Names of statuses and events, for messages.

use core::ffi::{CStr, c_char};

use crate::bindings::{ibv_event_type as event, ibv_wc_status as status};

pub(super) unsafe extern "C" fn wc_status_str(value: status) -> *const c_char {
    let text: &'static CStr = match value {
        status::IBV_WC_SUCCESS => c"success",
        status::IBV_WC_LOC_LEN_ERR => c"local length error",
        status::IBV_WC_LOC_QP_OP_ERR => c"local QP operation error",
        status::IBV_WC_LOC_PROT_ERR => c"local protection error",
        status::IBV_WC_WR_FLUSH_ERR => c"work request flushed",
        status::IBV_WC_REM_INV_REQ_ERR => c"remote invalid request error",
        status::IBV_WC_REM_ACCESS_ERR => c"remote access error",
        status::IBV_WC_REM_OP_ERR => c"remote operation error",
        status::IBV_WC_RETRY_EXC_ERR => c"transport retries exceeded",
        status::IBV_WC_RNR_RETRY_EXC_ERR => c"receiver-not-ready retries exceeded",
        _ => c"unknown",
    };
    text.as_ptr()
}

pub(super) unsafe extern "C" fn event_type_str(value: event) -> *const c_char {
    let text: &'static CStr = match value {
        event::IBV_EVENT_CQ_ERR => c"CQ error",
        event::IBV_EVENT_QP_FATAL => c"QP fatal error",
        event::IBV_EVENT_QP_REQ_ERR => c"QP invalid request error",
        event::IBV_EVENT_QP_ACCESS_ERR => c"QP access error",
        _ => c"unknown",
    };
    text.as_ptr()
}
