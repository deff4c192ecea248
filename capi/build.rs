//! Names libmu.so, so that a program that was linked with it asks for this interface's version and no other.

fn main() {
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmu.so.{major}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
