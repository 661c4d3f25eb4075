//! What the host must have, and the few things the controller asks of it.
//!
//! [`check`] runs before anything is changed: each thing that is missing is
//! one [`Unfit`] sentence that says what, why, and what to do. Then
//! [`mount_pins`] and [`forwarding::prepare`] change what has to change, and
//! say what they changed.
//!
//! Facts are judged by pure functions over the text the kernel gives; only
//! the thin readers around them touch the system.

pub mod clock;
pub mod forwarding;
pub mod interfaces;
pub mod ports;
pub mod topology;

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountFlags;
use thiserror::Error;

pub use clock::{stamp_shift, ticks_now, ticks_per_second, wide_ticks_now};
pub use interfaces::{
    InterfaceError, driver, ifindex, interface_name, interface_names, joins_frames, takes_tags_off,
};
pub use ports::ports;

/// Where the kernel's BPF file system is mounted by custom.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The oldest kernel on which the program is expected to load.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// The first kernel whose XDP programs may take frames larger than a page.
pub const FRAGS_KERNEL: (u32, u32) = (5, 18);

/// `BPF_FS_MAGIC` in the kernel's `magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What a configuration asks of the host.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The interfaces to attach to.
    pub interfaces: &'a [String],
    /// The folder of pinned maps and links.
    pub pin_path: &'a Path,
}

/// Why the host cannot run the balancer.
#[derive(Debug, Error)]
pub enum Unfit {
    /// Capabilities are missing.
    #[error(
        "lb may not load programs and change addresses: it lacks {}; run it as root, or give it CAP_BPF and CAP_NET_ADMIN",
        .0.join(" and ")
    )]
    Privileges(Vec<&'static str>),
    /// The kernel is too old.
    #[error(
        "this kernel ({0}) is too old for the XDP program, which needs Linux {major}.{minor} or later; boot a newer one",
        major = OLDEST_KERNEL.0, minor = OLDEST_KERNEL.1
    )]
    Kernel(String),
    /// The kernel has no BPF.
    #[error(
        "this kernel has no BPF, which the data path is made of; boot one built with CONFIG_BPF_SYSCALL=y"
    )]
    NoBpf,
    /// The BPF system call is refused.
    #[error(
        "the kernel refuses the bpf system call ({0}), although the capabilities are there: a container, its seccomp profile or a security module forbids it; run lb outside of it, or allow bpf there"
    )]
    BpfDenied(#[source] io::Error),
    /// Loading a program of one instruction failed otherwise.
    #[error(
        "loading a trivial XDP program failed ({0}), so the real one cannot be loaded either; the kernel's log (dmesg) may say more"
    )]
    BpfFailed(#[source] io::Error),
    /// An interface is not there.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// Pins would not be on a BPF file system.
    #[error(
        "pin_path {} is not on a BPF file system, and pinned maps can live nowhere else: choose a folder below {BPFFS}, or mount one there (mount -t bpf bpf FOLDER)",
        .0.display()
    )]
    PinPath(PathBuf),
    /// The BPF file system could not be mounted.
    #[error(
        "cannot mount the BPF file system on {}, where maps are pinned: {source}; do it by hand: mount -t bpf bpf {}",
        at.display(), at.display()
    )]
    Mount {
        /// Where.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel's own description could not be read.
    #[error(
        "cannot read {path}, which tells what this process may do here: {source}; is /proc mounted?"
    )]
    Read {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Checks everything that can be known without changing anything.
///
/// `try_bpf` loads a trivial XDP program and forgets it: only the kernel knows
/// whether it lets this process. It is an argument because only the data
/// plane's file speaks to BPF.
pub fn check(needs: &Needs<'_>, try_bpf: impl FnOnce() -> io::Result<()>) -> Result<(), Unfit> {
    check_bpf(try_bpf)?;
    for interface in needs.interfaces {
        ifindex(interface)?;
    }
    check_pins(needs.pin_path)
}

/// The part of [`check`] about the place of pins.
pub fn check_pins(pin_path: &Path) -> Result<(), Unfit> {
    pins(pin_path, Path::new(BPFFS)).map(drop)
}

/// The part of [`check`] that does not depend on a configuration.
pub fn check_bpf(try_bpf: impl FnOnce() -> io::Result<()>) -> Result<(), Unfit> {
    privileges(&read("/proc/thread-self/status")?)?;
    kernel(&rustix::system::uname().release().to_string_lossy())?;
    bpf_built_in(&read("/proc/filesystems")?)?;
    try_bpf().map_err(bpf_refused)
}

/// A random number from the kernel.
pub fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // A read of so few bytes is never cut short (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Mounts the BPF file system if `pin_path` needs it; gives whether it did.
pub fn mount_pins(pin_path: &Path) -> Result<bool, Unfit> {
    mount_pins_below(pin_path, Path::new(BPFFS))
}

fn mount_pins_below(pin_path: &Path, custom: &Path) -> Result<bool, Unfit> {
    match pins(pin_path, custom)? {
        Pins::Ready => Ok(false),
        Pins::ToMount => {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("bpf", custom, "bpf", flags, None).map_err(|error| {
                Unfit::Mount {
                    at: custom.into(),
                    source: error.into(),
                }
            })?;
            Ok(true)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pins {
    Ready,
    ToMount,
}

/// Whether pins can go to `pin_path`, or could if the BPF file system were
/// mounted at its `custom` place. Never mounted over one that is there: that
/// would hide the pins in it.
fn pins(pin_path: &Path, custom: &Path) -> Result<Pins, Unfit> {
    // The folder itself may be made later: its nearest ancestor counts. One
    // that climbs out again (`..`) only seems to lie below it.
    let climbs = pin_path
        .components()
        .any(|part| part == Component::ParentDir);
    let existing = pin_path.ancestors().find(|path| path.is_dir());
    if !climbs && existing.is_some_and(on_bpffs) {
        Ok(Pins::Ready)
    } else if !climbs && pin_path.starts_with(custom) && custom.is_dir() && !on_bpffs(custom) {
        Ok(Pins::ToMount)
    } else {
        Err(Unfit::PinPath(pin_path.into()))
    }
}

fn on_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC)
}

/// Judges the effective capabilities in the text of `/proc/PID/status`.
fn privileges(status: &str) -> Result<(), Unfit> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut missing = Vec::new();
    // CAP_SYS_ADMIN includes CAP_BPF, which was split off it.
    if !has(BPF) && !has(SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !has(NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Unfit::Privileges(missing))
    }
}

/// Judges a kernel release. One that has no version is let through: loading
/// will tell.
fn kernel(release: &str) -> Result<(), Unfit> {
    match kernel_version(release) {
        Some(version) if version < OLDEST_KERNEL => Err(Unfit::Kernel(release.into())),
        _ => Ok(()),
    }
}

/// The version in a kernel release such as `6.1.0-42-cloud-amd64`, if it begins
/// with two numbers.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Judges the text of `/proc/filesystems`: the BPF file system is built in
/// exactly where the system call is.
fn bpf_built_in(filesystems: &str) -> Result<(), Unfit> {
    let listed = filesystems
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some("bpf"));
    if listed { Ok(()) } else { Err(Unfit::NoBpf) }
}

fn bpf_refused(error: io::Error) -> Unfit {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSYS) => Unfit::NoBpf,
        Some(Errno::PERM | Errno::ACCESS) => Unfit::BpfDenied(error),
        _ => Unfit::BpfFailed(error),
    }
}

fn read(path: &'static str) -> Result<String, Unfit> {
    fs::read_to_string(path).map_err(|source| Unfit::Read { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_that_are_missing_are_named() {
        let table = [
            ("CapEff:\t000001ffffffffff\n", ""),
            ("Name:\tlb\nCapEff:\t0000008000001000\n", ""), // BPF and NET_ADMIN
            ("CapEff:\t0000000000201000\n", ""),            // SYS_ADMIN and NET_ADMIN
            ("CapEff:\t0000008000000000\n", "CAP_NET_ADMIN"),
            ("CapEff:\t0000000000001000\n", "CAP_BPF"),
            (
                "CapInh:\tff\nCapEff:\t0000000000000000\n",
                "CAP_BPF and CAP_NET_ADMIN",
            ),
            ("", "CAP_BPF and CAP_NET_ADMIN"),
        ];
        for (status, missing) in table {
            match privileges(status) {
                Ok(()) => assert_eq!(missing, "", "{status}"),
                Err(unfit) => assert_eq!(
                    unfit.to_string(),
                    format!(
                        "lb may not load programs and change addresses: it lacks {missing}; \
                         run it as root, or give it CAP_BPF and CAP_NET_ADMIN"
                    )
                ),
            }
        }
    }

    #[test]
    fn old_kernels_are_refused() {
        for fit in [
            "5.15.0",
            "5.15",
            "6.18.44-v1",
            "10.0-rc1",
            "6.1.0-42-cloud-amd64",
            "next",
        ] {
            assert!(kernel(fit).is_ok(), "{fit}");
        }
        for old in ["5.14.21-150500", "5.4.0", "4.19.0-27-amd64"] {
            assert_eq!(
                kernel(old).expect_err("it is too old").to_string(),
                format!(
                    "this kernel ({old}) is too old for the XDP program, \
                     which needs Linux 5.15 or later; boot a newer one"
                )
            );
        }
    }

    #[test]
    fn a_kernel_without_bpf_is_refused() {
        assert!(bpf_built_in("nodev\tsysfs\nnodev\tbpf\n\text4\n").is_ok());
        assert!(matches!(
            bpf_built_in("nodev\tsysfs\nnodev\tbpfx\n"),
            Err(Unfit::NoBpf)
        ));
    }

    #[test]
    fn each_refusal_of_bpf_is_told_apart() {
        let unfit = |errno| bpf_refused(io::Error::from_raw_os_error(errno));
        assert!(matches!(unfit(38), Unfit::NoBpf)); // ENOSYS
        assert!(matches!(unfit(1), Unfit::BpfDenied(_))); // EPERM
        assert!(matches!(unfit(13), Unfit::BpfDenied(_))); // EACCES
        assert!(matches!(unfit(12), Unfit::BpfFailed(_))); // ENOMEM
        assert!(unfit(1).to_string().starts_with(
            "the kernel refuses the bpf system call (Operation not permitted (os error 1))"
        ));
    }

    #[test]
    fn a_pin_path_elsewhere_is_refused() {
        let elsewhere = tempfile::tempdir().expect("a folder");
        let path = elsewhere.path().join("lb");
        let unfit = pins(&path, Path::new(BPFFS)).expect_err("it is no BPF file system");
        assert_eq!(
            unfit.to_string(),
            format!(
                "pin_path {} is not on a BPF file system, and pinned maps can live nowhere \
                 else: choose a folder below /sys/fs/bpf, or mount one there (mount -t bpf \
                 bpf FOLDER)",
                path.display()
            )
        );
    }

    /// A mount that ends with the test, however it ends.
    struct Mounted<'a>(&'a Path);

    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }

    #[test]
    fn a_missing_bpf_file_system_is_mounted_once() {
        let custom = tempfile::tempdir().expect("a folder");
        let pin_path = custom.path().join("lb/maps");
        assert_eq!(
            pins(&pin_path, custom.path()).expect("it can be"),
            Pins::ToMount
        );
        let mounted = Mounted(custom.path());
        assert!(mount_pins_below(&pin_path, custom.path()).expect("root can mount"));
        assert!(!mount_pins_below(&pin_path, custom.path()).expect("it is there"));
        let climbing = mount_pins_below(&custom.path().join("../lb"), custom.path());
        assert!(matches!(climbing, Err(Unfit::PinPath(_))));
        drop(mounted);
        assert_eq!(
            pins(&pin_path, custom.path()).expect("it can be"),
            Pins::ToMount
        );
    }

    #[test]
    fn this_host_is_fit_and_names_an_interface_that_is_not() {
        let pin_path = Path::new("/sys/fs/bpf/lb");
        let fit = |interfaces: &[String]| {
            check(
                &Needs {
                    interfaces,
                    pin_path,
                },
                || Ok(()),
            )
        };
        fit(&["lo".into()]).expect("root on a kernel with BPF");
        let unfit = fit(&["lo".into(), "nosuch0".into()]).expect_err("it is not there");
        let sentence = unfit.to_string();
        assert!(
            sentence.starts_with("interface nosuch0 does not exist; this host has ")
                && sentence.contains("lo"),
            "{sentence}"
        );
        let denied = check(
            &Needs {
                interfaces: &[],
                pin_path,
            },
            || Err(io::Error::from_raw_os_error(1)),
        );
        assert!(matches!(denied, Err(Unfit::BpfDenied(_))));
    }
}
