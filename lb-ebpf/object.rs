//! How the build script of another crate builds XDP programs of this one.
//!
//! The program is another crate for another target (`bpfel-unknown-none`),
//! which cargo cannot express as a dependency on stable, so a second cargo runs
//! inside the build script, with the same compiler and a target folder of its
//! own (the outer cargo holds the lock of the first). All profiles share that
//! one folder: the program is always optimised, because the verifier counts
//! instructions.
//!
//! `RUSTC_BOOTSTRAP=1` lets the pinned stable compiler use `-Z build-std`,
//! which builds `core` for the target; nothing else unstable is used. The
//! instruction set is version 3, the first with atomics that return the old
//! value (kernel 5.12).
//!
//! It is compiled into the build scripts of `lb-userspace` (the programs that
//! `lb` carries) and of `tests` (the benchmark's wrapper), so it knows nothing
//! but the standard library.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
};

#[path = "../xtask/src/tools.rs"]
mod tools;

const PACKAGE: &str = "lb-ebpf";

/// What separates the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// The program's own release profile; the workspace's is for the controller.
/// Debug information becomes BTF (types and source lines), not code.
const PROFILE: [(&str, &str); 7] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "false"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "false"),
];

/// Builds these binaries of the package, each with this feature, and copies
/// each to `OUT_DIR/BINARY.o`. The first that fails is the last.
pub(crate) fn build(programs: &[(&str, &str)]) -> ExitCode {
    match programs
        .iter()
        .try_for_each(|(binary, feature)| object(binary, feature))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Sentence(sentence)) => {
            // An `error` directive fails the build with just this line.
            println!("cargo::error={sentence}");
            ExitCode::SUCCESS
        }
        Err(Failure::Compiler(output)) => {
            let _ = io::stderr().write_all(&output.stderr);
            ExitCode::FAILURE
        }
    }
}

/// Why there is no object.
enum Failure {
    /// Something is missing; one line says what, and what to do.
    Sentence(String),
    /// The program does not compile; the compiler has said why.
    Compiler(Output),
}

fn object(binary: &str, feature: &str) -> Result<(), Failure> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    rerun_on_change(&workspace);

    let linker = tools::linker()
        .ok_or_else(|| missing(&format!("`{}`, which links the XDP program", tools::LINKER)))?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let sysroot = tools::sysroot(variable("RUSTC")?.as_ref()).ok_or_else(|| {
        Failure::Sentence("`rustc --print sysroot` failed; is the Rust toolchain complete?".into())
    })?;
    if !tools::has_core_source(&sysroot) {
        return Err(missing(
            "the source of Rust's `core` library, from which it is built for eBPF",
        ));
    }

    let target = if variable("CARGO_CFG_TARGET_ENDIAN")? == "big" {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    };
    let folder = target_folder(&out);
    let output = cargo(&workspace, &folder, target, &linker)?
        .args(["--bin", binary, "--features", feature])
        .output()
        .map_err(|error| {
            Failure::Sentence(format!("cannot run cargo for the XDP program: {error}"))
        })?;
    if !output.status.success() {
        return Err(Failure::Compiler(output));
    }
    forward_warnings(&output);

    let built = folder.join(target).join("release").join(binary);
    let object = out.join(format!("{binary}.o"));
    fs::copy(&built, &object).map_err(|error| {
        Failure::Sentence(format!(
            "cannot copy {} to {}: {error}",
            built.display(),
            object.display()
        ))
    })?;
    Ok(())
}

/// The inner cargo, ready to run.
fn cargo(workspace: &Path, folder: &Path, target: &str, linker: &Path) -> Result<Command, Failure> {
    let flags = [
        format!(
            "--cfg=bpf_target_arch=\"{}\"",
            variable("CARGO_CFG_TARGET_ARCH")?
        ),
        "-Ctarget-cpu=v3".into(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        // Packets are not aligned, and the machines that run the program load
        // unaligned words: without this each field is put together byte by byte.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access,+alu32".into(),
    ];
    let mut command = Command::new(variable("CARGO")?);
    command
        .current_dir(workspace)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "-Zbuild-std=core",
        ])
        .args(["--package", PACKAGE])
        .args(["--target", target, "--target-dir"])
        .arg(folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(SEPARATOR))
        .envs(PROFILE)
        // Clippy's wrapper, when clippy runs this script, would check instead of compile.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(command)
}

/// A folder beside the outer build's profile folders:
/// `OUT_DIR` is `target/PROFILE/build/PACKAGE-HASH/out`.
fn target_folder(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).join("ebpf")
}

fn rerun_on_change(workspace: &Path) {
    for path in [
        "Cargo.lock",
        "Cargo.toml",
        "lb-common/Cargo.toml",
        "lb-common/src",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/src",
        "lb-ebpf/object.rs",
        "xtask/src/tools.rs",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
}

/// With `--quiet`, cargo says nothing but warnings.
fn forward_warnings(output: &Output) {
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("cargo::warning={line}");
    }
}

fn variable(name: &str) -> Result<String, Failure> {
    env::var(name).map_err(|error| {
        Failure::Sentence(format!(
            "the environment variable {name}, which cargo sets for a build script: {error}"
        ))
    })
}

fn missing(what: &str) -> Failure {
    Failure::Sentence(format!("missing: {what}; run `cargo xtask setup`"))
}
