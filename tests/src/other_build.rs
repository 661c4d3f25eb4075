//! Another build of `lb`, as the next version might be: of a changed ABI.
//!
//! The sources of this checkout, as they are, are copied to a folder below the
//! target folder and changed there: a version that is one higher, and fields that
//! have moved ([`CHANGES`]). Cargo builds the copy in a target folder of its own,
//! for nothing may take the place of what is tested. It does so again only when
//! the sources have changed.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi::ABI_VERSION;

/// The checkout that this was built in.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The file that is changed.
const ABI: &str = "lb-common/src/abi.rs";

/// What is changed, besides the version: text that is there once, and what
/// stands there instead. Sizes stay as they are, as the file asserts; what is in
/// front moves everything behind it.
const CHANGES: [(&str, &str); 4] = [
    (
        "pub struct Connection {\n",
        "pub struct Connection {\n    /// Always zero.\n    pub front: [Word<u32>; 2],\n",
    ),
    (
        "    pub rest: [Word<u32>; 7],\n",
        "    pub rest: [Word<u32>; 5],\n",
    ),
    (
        "    /// The service it belongs to.\n    pub service: u32,\n",
        "",
    ),
    (
        "pub struct Backend {\n",
        "pub struct Backend {\n    /// The service it belongs to.\n    pub service: u32,\n",
    ),
];

/// The version of the other build's ABI.
pub const OTHER_ABI: u32 = ABI_VERSION + 1;

/// Builds it below this folder, unless that was done before, and gives the path of
/// its `lb`.
pub fn other_build(folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("other-build");
    let (sources, target) = (folder.join("source"), folder.join("target"));
    fs::create_dir_all(&sources)
        .with_context(|| format!("cannot make the folder {}", sources.display()))?;
    let lock = File::create(folder.join("lock")).context("cannot make a file to lock")?;
    lock.lock()
        .context("cannot wait for another test's build")?;
    copy(&sources)?;
    eprintln!(
        "building another lb in {}: the first time, or after a change, it takes some minutes",
        folder.display()
    );
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&sources)
        .args(["build", "--quiet", "--locked"])
        .args(["--package", "lb-userspace", "--bin", "lb"])
        .args((profile == "release").then_some("--release"))
        .env("CARGO_TARGET_DIR", &target)
        // Whoever built this test has fetched everything; the build of the XDP
        // program, which has a cargo of its own, is to know it as well.
        .env("CARGO_NET_OFFLINE", "true")
        // Built once and not debugged.
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the other build of lb failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(target.join(profile).join("lb"))
}

/// Makes the folder hold the changed sources. Files that are right already are
/// left alone: cargo looks at their times.
fn copy(folder: &Path) -> Result<()> {
    let names = listed()?;
    for name in &names {
        let from = Path::new(CHECKOUT).join(name);
        let mut text = match fs::read(&from) {
            Ok(text) => text,
            // Taken away, but not in the index yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {name:?}")),
        };
        if name == Path::new(ABI) {
            text = changed(&String::from_utf8(text)?)?.into_bytes();
        }
        let to = folder.join(name);
        if fs::read(&to).is_ok_and(|there| there == text) {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
        fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    remove_others(folder, Path::new(""), &names)
}

/// The files of the checkout, those that are not in the index yet among them.
fn listed() -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["-C", CHECKOUT, "ls-files", "-z", "--cached", "--others"])
        .arg("--exclude-standard")
        .output()
        .context("cannot run git, which lists the sources")?;
    ensure!(
        output.status.success(),
        "git does not list the sources in {CHECKOUT}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let names = output.stdout.split(|byte| *byte == 0);
    let names = names.filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).into()).collect())
}

/// Removes files that are no sources any more: cargo would find a module's.
fn remove_others(root: &Path, below: &Path, names: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_others(root, &name, names)?;
        } else if !names.contains(&name) || !Path::new(CHECKOUT).join(&name).exists() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The text of [`ABI`] in the other build.
fn changed(text: &str) -> Result<String> {
    let version = |number: u32| format!("pub const ABI_VERSION: u32 = {number};\n");
    let mut text = replaced(text, &version(ABI_VERSION), &version(OTHER_ABI))?;
    for (old, new) in CHANGES {
        text = replaced(&text, old, new)?;
    }
    Ok(text)
}

fn replaced(text: &str, old: &str, new: &str) -> Result<String> {
    match text.matches(old).count() {
        1 => Ok(text.replacen(old, new, 1)),
        count => bail!(
            "{ABI} has {count} times, not once, the text {old:?}, which the other build changes; mend CHANGES in tests/src/other_build.rs"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_abi_can_be_changed() -> Result<()> {
        let text = fs::read_to_string(Path::new(CHECKOUT).join(ABI))?;
        let changed = changed(&text)?;
        assert_eq!(
            changed.matches("pub service: u32").count(),
            text.matches("pub service: u32").count()
        );
        Ok(())
    }

    #[test]
    fn a_text_that_is_not_there_is_named() {
        let refused = replaced("a b c", "d", "e").unwrap_err().to_string();
        assert!(
            refused.contains("has 0 times, not once, the text \"d\""),
            "{refused}"
        );
        assert!(refused.contains("mend CHANGES"), "{refused}");
        assert!(replaced("a b a", "a", "e").is_err());
    }
}
