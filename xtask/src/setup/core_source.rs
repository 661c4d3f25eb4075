//! The source of Rust's `core` library.
//!
//! rustup has it as the component `rust-src`. Where rustup cannot deliver it
//! (no rustup, or a network that only reaches a Debian mirror), Debian's
//! package `rust-src` of exactly the compiler's version does as well: it is
//! looked up in the newest backports suite through the mirror and keyring this
//! machine's apt already trusts, in apt folders of its own, so that the
//! machine's package lists and sources stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::Outcome;
use crate::{report, shell, tools};

/// The suite that carries each stable compiler soon after its release.
const SUITE: &str = "trixie-backports";

/// How long rustup may try; a network that swallows packets must not stall setup.
const RUSTUP_SECONDS: &str = "300";

pub(super) fn install() -> Result<Outcome> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot =
        tools::sysroot(&rustc).context("`rustc --print sysroot` failed; install Rust first")?;
    if tools::has_core_source(&sysroot) {
        return Ok(Outcome::AlreadyThere);
    }
    report::step(
        "installing",
        "the source of Rust's `core`: there is no compiled one for eBPF, so it is built with the XDP program",
    );
    let by_rustup = from_rustup();
    if by_rustup.is_ok() && tools::has_core_source(&sysroot) {
        return Ok(Outcome::Provided);
    }
    report::step(
        "trying",
        "Debian's package of it, because rustup cannot deliver it here",
    );
    let version = shell::output(Command::new(&rustc).arg("--version"))?;
    let version = compiler_version(&version).context("`rustc --version` names no version")?;
    from_debian(version, &sysroot).context(
        "the source of Rust's `core` is missing and neither rustup nor Debian's packages deliver it; \
         run `rustup component add rust-src` where the network allows it",
    )?;
    if !tools::has_core_source(&sysroot) {
        bail!(
            "Debian's rust-src {version} holds no source of `core`; run `rustup component add rust-src`"
        );
    }
    Ok(Outcome::Provided)
}

fn from_rustup() -> Result<()> {
    shell::run_quietly(Command::new("timeout").args([
        RUSTUP_SECONDS,
        "rustup",
        "component",
        "add",
        "rust-src",
    ]))
}

/// `1.95.0` of `rustc 1.95.0 (59807616e 2026-04-14)`.
fn compiler_version(line: &str) -> Option<&str> {
    line.split_whitespace().nth(1)
}

fn from_debian(version: &str, sysroot: &Path) -> Result<()> {
    if !shell::is_on_path("apt-get") {
        bail!("this is no Debian system (no apt-get)");
    }
    let apt = PrivateApt::new(&shell::target_folder()?.join("rust-src-apt"))?;
    shell::run_quietly(apt.command("apt-get").arg("update"))?;
    let offered = shell::output(apt.command("apt-cache").args(["madison", "rust-src"]))?;
    let package = matching_version(&offered, version)
        .with_context(|| format!("{SUITE} has no rust-src for Rust {version}"))?;
    report::step("fetching", &format!("rust-src {package} from {SUITE}"));
    shell::run_quietly(
        apt.command("apt-get")
            .args(["download", &format!("rust-src={package}")])
            .current_dir(&apt.folder),
    )?;
    let archive = fs::read_dir(&apt.folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    unpack(&archive, version, &tools::source_folder(sysroot))?;
    // Tens of megabytes that nobody needs again.
    fs::remove_dir_all(&apt.folder)
        .with_context(|| format!("cannot remove {}", apt.folder.display()))
}

/// Unpacks beside the place and renames, so that an interrupted setup leaves
/// nothing that looks complete.
fn unpack(archive: &Path, version: &str, place: &Path) -> Result<()> {
    let partial = place.join("unpacking");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    shell::run_quietly(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(archive)
            .arg(&partial),
    )?;
    let source = partial.join(format!("usr/src/rustc-{version}"));
    for name in ["Cargo.lock", "library"] {
        let (from, to) = (source.join(name), place.join(name));
        if to.is_dir() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(&from, &to)
            .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))?;
    }
    fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))
}

/// The version in a listing of `apt-cache madison` that belongs to a compiler:
/// the Debian version is the compiler's, `+`, and what Debian changed.
fn matching_version<'a>(listing: &'a str, compiler: &str) -> Option<&'a str> {
    listing
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|offered| offered.split(['+', '-']).next() == Some(compiler))
}

/// Folders that make apt see one suite only and leave the machine's lists alone.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    fn new(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        for part in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let (name, source) = source_for(SUITE)?;
        fs::write(folder.join("sources").join(name), source)?;
        Ok(Self {
            folder: folder.to_path_buf(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            "Dir::Etc::SourceList=/dev/null".into(),
            format!("Dir::Etc::SourceParts={folder}/sources"),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // apt's own unprivileged user cannot write here.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// The machine's first apt source of its own release, turned to another suite;
/// with it come the mirror's address, the keyring and every other option.
fn source_for(suite: &str) -> Result<(&'static str, String)> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename =
        codename(&release).context("/etc/os-release names no VERSION_CODENAME; is this Debian?")?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in files {
        // A file that is missing or unreadable offers nothing.
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => {
                in_stanzas(&text, codename, suite).map(|source| ("suite.sources", source))
            }
            Some("list") => in_lines(&text, codename, suite).map(|source| ("suite.list", source)),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    bail!("apt's sources name no Debian mirror for {codename}");
}

fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// In the form `deb [OPTIONS] URI SUITE COMPONENT…`, see sources.list(5).
fn in_lines(text: &str, codename: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.trim();
        let rest = line.strip_prefix("deb")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, named) = (words.next()?, words.next()?);
        (named == codename && words.any(|component| component == "main"))
            .then(|| format!("deb [{options}] {uri} {suite} main\n").replace(" []", ""))
    })
}

/// In the form of stanzas with fields, see sources.list(5), "deb822".
fn in_stanzas(text: &str, codename: &str, suite: &str) -> Option<String> {
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    text.split("\n\n").find_map(|stanza| {
        let words = |field: &str| {
            stanza
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case(field))
                .map(|(_, value)| value.split_whitespace().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        let fits = words("Types").contains(&"deb")
            && words("Suites").contains(&codename)
            && words("Components").contains(&"main")
            && !words("Enabled").contains(&"no");
        fits.then(|| turned(stanza, suite))
    })
}

/// The stanza with another suite, for binary packages of `main` only.
fn turned(stanza: &str, suite: &str) -> String {
    let kept = stanza.trim().lines().filter(|line| {
        let name = line
            .split_once(':')
            .map_or("", |(name, _)| name)
            .to_ascii_lowercase();
        !["types", "suites", "components"].contains(&name.as_str())
    });
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    format!("Types: deb\nSuites: {suite}\nComponents: main\n{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_version_is_the_second_word() {
        assert_eq!(
            compiler_version("rustc 1.95.0 (59807616e 2026-04-14)\n"),
            Some("1.95.0")
        );
        assert_eq!(compiler_version(""), None);
    }

    #[test]
    fn only_the_package_of_exactly_this_compiler_fits() {
        let listing = "  rust-src | 1.96.1+dfsg1-2~bpo13+1 | http://mirror suite/main amd64 Packages\n  \
                       rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://mirror suite/main amd64 Packages\n";
        assert_eq!(
            matching_version(listing, "1.95.0"),
            Some("1.95.0+dfsg1-2~bpo13+1")
        );
        assert_eq!(matching_version(listing, "1.9"), None);
        assert_eq!(matching_version("", "1.95.0"), None);
    }

    #[test]
    fn a_one_line_source_keeps_its_options_and_changes_its_suite() {
        let text = "# deb http://old bookworm main\n\
                    deb-src http://mirror/debian bookworm main\n\
                    deb http://mirror/security bookworm-security main\n\
                    deb [signed-by=/k.gpg arch=amd64] http://mirror/debian bookworm main contrib\n";
        assert_eq!(
            in_lines(text, "bookworm", "trixie-backports").as_deref(),
            Some("deb [signed-by=/k.gpg arch=amd64] http://mirror/debian trixie-backports main\n")
        );
        assert_eq!(
            in_lines("deb http://mirror/debian bookworm main", "bookworm", "s").as_deref(),
            Some("deb http://mirror/debian s main\n")
        );
        assert_eq!(in_lines(text, "sid", "s"), None);
    }

    #[test]
    fn a_stanza_keeps_its_keyring_and_changes_its_suite() {
        let text = "Types: deb\nURIs: http://mirror/security\nSuites: bookworm-security\nComponents: main\n\n\
                    # the archive\nTypes: deb deb-src\n# old: http://x\nURIs: http://mirror/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By:\n -----BEGIN\n .\n -----END\n";
        assert_eq!(
            in_stanzas(text, "bookworm", "trixie-backports").as_deref(),
            Some(
                "Types: deb\nSuites: trixie-backports\nComponents: main\n\
                 URIs: http://mirror/debian\nSigned-By:\n -----BEGIN\n .\n -----END\n"
            )
        );
        assert_eq!(
            in_stanzas(
                "Types: deb\nEnabled: no\nURIs: http://m\nSuites: a\nComponents: main\n",
                "a",
                "s"
            ),
            None
        );
    }

    #[test]
    fn the_codename_may_be_quoted() {
        assert_eq!(
            codename("NAME=x\nVERSION_CODENAME=bookworm\n"),
            Some("bookworm")
        );
        assert_eq!(codename("VERSION_CODENAME=\"trixie\""), Some("trixie"));
        assert_eq!(codename("NAME=x"), None);
    }
}
