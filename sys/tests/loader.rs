//! Opening libibverbs: what the errors say, and that a complete library is taken.

#![cfg(not(miri))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mu_sys::{Lib, LoadError};

fn open(path: &Path) -> Result<Lib, LoadError> {
    // SAFETY: the libraries of these tests run no initialisers of their own, and their verbs are never called.
    unsafe { Lib::open(path) }
}

/// A library that exports functions of these names, or `None` without a C compiler.
fn library(name: &str, symbols: &[&str]) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join(format!("{name}.c"));
    let library = folder.join(format!("lib{name}.so"));
    let text: String = symbols
        .iter()
        .map(|symbol| format!("void {symbol}(void) {{}}\n"))
        .collect();
    fs::write(&source, text).expect("the folder for test files can be written");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "cc: {status}");
            Some(library)
        }
        Err(error) => {
            println!("SKIP: no C compiler: {error}");
            None
        }
    }
}

#[test]
fn a_missing_library_names_the_remedy() {
    let error = open(Path::new("libmu-no-such-library.so.7")).expect_err("it does not exist");
    let text = error.to_string();
    assert!(matches!(error, LoadError::NotFound { .. }));
    assert!(
        text.contains("libmu-no-such-library.so.7") && text.contains("No such file"),
        "{text}"
    );
    assert!(text.contains("rdma-core"), "{text}");
}

#[test]
fn a_path_with_a_nul_is_refused() {
    let error = open(Path::new("lib\0.so")).expect_err("no C string can hold it");
    assert!(error.to_string().contains("NUL"), "{error}");
}

#[test]
fn every_missing_symbol_is_named() {
    let error = open(Path::new("libc.so.6")).expect_err("the C library has no verbs");
    let text = error.to_string();
    let LoadError::MissingSymbols { symbols, .. } = error else {
        panic!("{text}")
    };
    assert_eq!(symbols, Lib::REQUIRED);
    assert!(
        Lib::REQUIRED.iter().all(|symbol| text.contains(symbol)),
        "{text}"
    );
}

#[test]
fn only_the_missing_symbols_are_named() {
    let missing = ["ibv_dereg_mr", "ibv_modify_qp"];
    let there: Vec<_> = Lib::REQUIRED
        .iter()
        .copied()
        .filter(|symbol| !missing.contains(symbol))
        .collect();
    let Some(path) = library("two-missing", &there) else {
        return;
    };
    let error = open(&path).expect_err("two are missing");
    assert_eq!(
        error,
        LoadError::MissingSymbols {
            library: path.display().to_string(),
            symbols: missing.to_vec()
        }
    );
}

#[test]
fn optional_symbols_may_be_missing() {
    let Some(path) = library("required-only", Lib::REQUIRED) else {
        return;
    };
    let lib = open(&path).expect("all required symbols are there");
    assert!(lib.ibv_rereg_mr.is_none() && lib.ibv_query_qp_data_in_order.is_none());

    let all: Vec<_> = Lib::REQUIRED.iter().chain(Lib::OPTIONAL).copied().collect();
    let Some(path) = library("complete", &all) else {
        return;
    };
    let lib = open(&path).expect("all symbols are there");
    assert!(lib.ibv_rereg_mr.is_some() && lib.ibv_query_qp_data_in_order.is_some());
}

#[test]
fn the_library_of_this_machine_answers() {
    let lib = match Lib::load() {
        Ok(lib) => lib,
        Err(error @ LoadError::NotFound { .. }) => {
            println!("SKIP: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert!(std::ptr::eq(
        lib,
        Lib::load().expect("the first answer stands")
    ));
    let mut count = -1;
    // SAFETY: a writable count; the list is freed once.
    unsafe {
        let list = (lib.ibv_get_device_list)(&mut count);
        if list.is_null() {
            println!("no device list: {}", std::io::Error::last_os_error());
        } else {
            assert!(count >= 0);
            (lib.ibv_free_device_list)(list);
        }
        let text = std::ffi::CStr::from_ptr((lib.ibv_wc_status_str)(
            mu_sys::ibv_wc_status::IBV_WC_SUCCESS,
        ));
        assert_eq!(text, c"success");
    }
}
