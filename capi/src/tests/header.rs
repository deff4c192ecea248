//! `include/mu.h` is what cbindgen makes of the sources.

use std::fs;
use std::path::Path;

/// Set: the header is written instead of compared.
const WRITE: &str = "MU_CAPI_WRITE_HEADER";

fn generated() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("its options");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in [
        "code.rs",
        "raw/types.rs",
        "raw/pointers.rs",
        "raw/calls_open.rs",
        "raw/calls_propose.rs",
        "raw/calls_data.rs",
        "raw/calls_state.rs",
    ] {
        builder = builder.with_src(folder.join("src").join(file));
    }
    let bindings = builder.generate().expect("the sources are understood");
    let mut header = Vec::new();
    bindings.write(&mut header);
    let header = String::from_utf8(header).expect("a text");
    // What Rust calls safety is about pointers alone.
    let header = header.replace("//\n// # Safety\n// ", "//\n// Pointers: ");
    let lines = header.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

#[test]
fn the_header_is_what_cbindgen_makes_of_the_sources() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/mu.h");
    let generated = generated();
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &generated).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).expect("the header");
    assert!(
        committed == generated,
        "include/mu.h is not what the sources say: make it anew with {WRITE}=1 cargo test -p mu-capi header"
    );
    assert!(
        generated.contains("mu_result mu_propose(mu_handle handle,"),
        "{generated}"
    );
    assert!(generated.contains("#define MU_OK 0"), "{generated}");
}
