//! The build script of `mu-sys` (`sys/build.rs` is a symlink to this file). It does nothing unless a feature asks.
//!
//! - `link`: emits the directive that links libibverbs.
//! - `bindgen`: generates the bindings from the installed `infiniband/verbs.h` into `OUT_DIR`, where the crate then
//!   takes them from. Environment variables:
//!   - `MU_SYS_BINDINGS_DIR`: also write `<arch>.rs` into this folder;
//!   - `MU_SYS_OVERWRITE=1`: the same with the folder of the committed bindings;
//!   - `MU_SYS_BINDINGS_ARCHS`: the architectures to write there, comma-separated; by default that of the target.
//!
//! So the committed files are refreshed by
//! `MU_SYS_OVERWRITE=1 MU_SYS_BINDINGS_ARCHS=x86_64,aarch64 cargo check -p mu-sys --features bindgen`,
//! with the packages that `ci/bindings` names.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(mu_sys_bindings, values(\"x86_64\", \"aarch64\"))");
    #[cfg(feature = "link")]
    println!("cargo::rustc-link-lib=ibverbs");
    #[cfg(feature = "bindgen")]
    generate::run();
}

#[cfg(feature = "bindgen")]
mod generate {
    use std::env;
    use std::path::{Path, PathBuf};

    /// Every function the loader looks up; the types they need follow by themselves.
    const FUNCTIONS: &[&str] = &[
        "_ibv_query_gid_ex",
        "ibv_ack_async_event",
        "ibv_ack_cq_events",
        "ibv_alloc_pd",
        "ibv_close_device",
        "ibv_create_(ah|comp_channel|cq|qp)",
        "ibv_dealloc_pd",
        "ibv_dereg_mr",
        "ibv_destroy_(ah|comp_channel|cq|qp)",
        "ibv_event_type_str",
        "ibv_fork_init",
        "ibv_free_device_list",
        "ibv_get_(async_event|cq_event|device_guid|device_list|device_name)",
        "ibv_modify_qp",
        "ibv_open_device",
        "ibv_query_(device|gid|pkey|port|qp|qp_data_in_order)",
        "ibv_reg_mr",
        "ibv_rereg_mr",
        "ibv_wc_status_str",
    ];

    /// Types that no function above names.
    const TYPES: &[&str] = &[
        "ibv_access_flags",
        "ibv_device_cap_flags",
        "ibv_gid_type",
        "ibv_grh",
        "ibv_mw_bind",
        "ibv_port_attr",
        "ibv_port_cap_flags",
        "ibv_qp_attr_mask",
        "ibv_rereg_mr_(err_code|flags)",
        "ibv_send_flags",
        "ibv_wc_flags",
        "verbs_context",
    ];

    /// Enumerations whose values are or-ed together.
    const BITMASKS: &[&str] = &[
        "ibv_access_flags",
        "ibv_device_cap_flags",
        "ibv_port_cap_flags",
        "ibv_qp_attr_mask",
        "ibv_rereg_mr_flags",
        "ibv_send_flags",
        "ibv_wc_flags",
    ];

    /// Types that only the tail of `verbs_context` points to: their size is kept, their members are not.
    const OPAQUE: &[&str] = &[
        "ibv_advise_mr_advice",
        "ibv_alloc_dm_attr",
        "ibv_counter.*",
        "ibv_cq_ex",
        "ibv_cq_init_attr_ex",
        "ibv_device_attr_ex",
        "ibv_dm",
        "ibv_flow.*",
        "ibv_modify_cq_attr",
        "ibv_ops_wr.*",
        "ibv_parent_domain_init_attr",
        "ibv_poll_cq_attr",
        "ibv_qp_init_attr_ex",
        "ibv_qp_open_attr",
        "ibv_qp_rate_limit_attr",
        "ibv_query_device_ex_input",
        "ibv_rwq_ind_table.*",
        "ibv_srq_init_attr_ex",
        "ibv_td.*",
        "ibv_values_ex",
        "ibv_wq.*",
        "ibv_xrcd.*",
        "_ibv_device_ops",
    ];

    pub(crate) fn run() {
        for name in [
            "MU_SYS_BINDINGS_DIR",
            "MU_SYS_OVERWRITE",
            "MU_SYS_BINDINGS_ARCHS",
        ] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        let target_arch = var("CARGO_CFG_TARGET_ARCH");
        write(
            &target_arch,
            &Path::new(&var("OUT_DIR")).join("bindings.rs"),
        );

        let folder = match env::var("MU_SYS_OVERWRITE").as_deref() {
            Ok("1") => Some(Path::new(&var("CARGO_MANIFEST_DIR")).join("src/bindings")),
            _ => env::var_os("MU_SYS_BINDINGS_DIR").map(PathBuf::from),
        };
        if let Some(folder) = folder {
            let archs = env::var("MU_SYS_BINDINGS_ARCHS").unwrap_or(target_arch);
            for arch in archs.split(',') {
                write(arch, &folder.join(format!("{arch}.rs")));
            }
        }
    }

    fn var(name: &str) -> String {
        env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn write(arch: &str, path: &Path) {
        let triple = format!("{arch}-linux-gnu");
        let mut builder = bindgen::Builder::default()
            .header_contents("mu_sys.h", "#include <infiniband/verbs.h>\n")
            .clang_arg(format!("--target={triple}"))
            // Debian's cross headers; for the native architecture this folder does not exist.
            .clang_arg(format!("-isystem/usr/{triple}/include"))
            .rust_target(bindgen::RustTarget::stable(88, 0).expect("a version that bindgen knows"))
            .rust_edition(bindgen::RustEdition::Edition2024)
            .use_core()
            .ctypes_prefix("::core::ffi")
            .generate_comments(false)
            .disable_header_comment()
            .raw_line(format!("// Generated by bindgen from rdma-core's infiniband/verbs.h for {triple}. Do not edit;"))
            .raw_line("// build.rs tells how to regenerate, and ci/bindings does so and compares.")
            .raw_line("// Of the two licences that rdma-core offers, the OpenIB.org BSD one is taken: sys/LICENSE-BSD.")
            .raw_line("")
            .raw_line("use libc::{pthread_cond_t, pthread_mutex_t};")
            .blocklist_type("pthread_(cond|mutex)_t|__pthread_.*|__atomic_wide_counter.*")
            .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
            // The anonymous enumeration of link layers: port attributes hold it as a plain integer.
            .constified_enum("IBV_LINK_LAYER_UNSPECIFIED")
            .allowlist_var("IBV_LINK_LAYER_.*")
            .derive_default(true)
            .layout_tests(true)
            .formatter(bindgen::Formatter::Prettyplease);
        builder = FUNCTIONS
            .iter()
            .fold(builder, |b, name| b.allowlist_function(name));
        builder = TYPES.iter().fold(builder, |b, name| b.allowlist_type(name));
        builder = BITMASKS
            .iter()
            .fold(builder, |b, name| b.bitfield_enum(name));
        builder = OPAQUE.iter().fold(builder, |b, name| b.opaque_type(name));
        let bindings = builder.generate().unwrap_or_else(|error| {
            panic!("{triple}: {error} (needs libclang and the headers of libibverbs-dev; see ci/bindings)")
        });
        bindings
            .write_to_file(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
