//! Listing and opening devices.

use std::ffi::c_int;
use std::ptr;

use mu_sys::{_compat_ibv_port_attr, ibv_context, ibv_device, ibv_port_attr, ibv_port_state};

use super::{broken, open, open_error, real, set_errno};
use crate::Error;
use crate::nic::devices;

extern "C" fn no_list(_: *mut c_int) -> *mut *mut ibv_device {
    set_errno(libc::ENOSYS);
    ptr::null_mut()
}

extern "C" fn failing_list(_: *mut c_int) -> *mut *mut ibv_device {
    set_errno(libc::ENOMEM);
    ptr::null_mut()
}

#[test]
fn a_kernel_without_rdma_is_an_empty_list_with_a_reason() {
    let lib = broken(|lib| lib.ibv_get_device_list = no_list);
    let list = devices(lib).unwrap();
    assert!(list.is_empty());
    assert!(list.reason.unwrap().contains("modprobe ib_uverbs"));
    let error = open_error(lib);
    assert!(
        matches!(&error, Error::NoDevice { present, .. } if present.contains("no RDMA support")),
        "{error}"
    );
    let lib = broken(|lib| lib.ibv_get_device_list = failing_list);
    assert_eq!(devices(lib).unwrap_err().errno(), libc::ENOMEM);
}

extern "C" fn forbidden_open(_: *mut ibv_device) -> *mut ibv_context {
    set_errno(libc::EACCES);
    ptr::null_mut()
}

#[test]
fn a_missing_permission_names_the_file_and_the_remedy() {
    let lib = broken(|lib| lib.ibv_open_device = forbidden_open);
    let error = open_error(lib);
    assert_eq!(error.errno(), libc::EACCES);
    assert!(
        error.to_string().contains("/dev/infiniband/uverbs-fake0")
            && error.to_string().contains("group"),
        "{error}"
    );
    let list = devices(lib).unwrap();
    assert_eq!(list.len(), 2);
    assert!(
        list[0]
            .problem
            .as_ref()
            .unwrap()
            .contains("read and write permission")
    );
    assert!(list[0].ports.is_empty() && list[0].guid != 0);
}

unsafe extern "C" fn port_down(
    context: *mut ibv_context,
    port: u8,
    attr: *mut _compat_ibv_port_attr,
) -> c_int {
    // SAFETY: passed on as it came; the struct is at least as long as its first member.
    unsafe {
        let code = (real().ibv_query_port)(context, port, attr);
        (*attr.cast::<ibv_port_attr>()).state = ibv_port_state::IBV_PORT_DOWN;
        code
    }
}

unsafe extern "C" fn no_gids(
    context: *mut ibv_context,
    port: u8,
    attr: *mut _compat_ibv_port_attr,
) -> c_int {
    // SAFETY: as above.
    unsafe {
        let code = (real().ibv_query_port)(context, port, attr);
        (*attr.cast::<ibv_port_attr>()).gid_tbl_len = 0;
        code
    }
}

#[test]
fn a_port_that_is_down_or_has_no_address_cannot_be_opened() {
    let error = open_error(broken(|lib| lib.ibv_query_port = port_down));
    assert_eq!(error.errno(), libc::ENETDOWN);
    assert!(
        error.to_string().contains("state DOWN") && error.to_string().contains("ip link set"),
        "{error}"
    );
    let error = open_error(broken(|lib| lib.ibv_query_port = no_gids));
    assert!(error.to_string().contains("has no GID"), "{error}");
}

#[test]
fn an_old_library_still_gives_addresses() {
    let lib = broken(|lib| lib._ibv_query_gid_ex = None);
    // Without a type the first address is as good as any.
    assert_eq!(
        open(lib).gid().unwrap().to_string(),
        "0: fe80::ff:fe00:1 (unknown)"
    );
}
