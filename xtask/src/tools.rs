//! Where the tools of the eBPF build are.
//!
//! One list of what the build needs, read by `cargo xtask setup`, which
//! provides it, and by `lb-userspace/build.rs`, which uses it (this file is
//! compiled into both, so it knows nothing but the standard library).

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// The name of the linker for eBPF objects.
pub(crate) const LINKER: &str = "bpf-linker";

/// The linker, if it is installed: first where `cargo install` puts it, which
/// is what setup does, then wherever `PATH` leads.
pub(crate) fn linker() -> Option<PathBuf> {
    let installed = cargo_home().map(|home| home.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    installed
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(LINKER))
        .find(|file| file.is_file())
}

/// Cargo's own folder.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
}

/// The folder of the compiler's own files.
pub(crate) fn sysroot(rustc: &OsStr) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| PathBuf::from(text.trim_end()))
}

/// The folder that holds the standard library's source when it is installed.
/// There is no compiled `core` for the eBPF target, so it is built from here.
pub(crate) fn source_folder(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust")
}

/// Whether the source of `core`, and the lock file that cargo reads to build
/// it, are there.
pub(crate) fn has_core_source(sysroot: &Path) -> bool {
    let library = source_folder(sysroot).join("library");
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}
