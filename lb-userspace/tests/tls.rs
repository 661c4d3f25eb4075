//! `lb tls init` and `lb tls show`, and what `lb check` and `lb run` say of an identity.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tempfile::TempDir;

use lb_userspace::tls::{Identity, Paths, TlsFault};

/// A folder, and `lb` run in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Status, standard output, standard error.
    fn seen(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command.current_dir(self.0.path());
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RUST_LOG"] {
            command.env_remove(variable);
        }
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("lb runs");
        let text = |bytes| String::from_utf8(bytes).expect("lb writes UTF-8");
        (status.code(), text(stdout), text(stderr))
    }

    #[track_caller]
    fn shown(&self, line: &str) -> String {
        let (status, stdout, stderr) = self.seen(line);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{stdout}");
        stdout
    }

    #[track_caller]
    fn complaint(&self, line: &str) -> String {
        let (status, stdout, stderr) = self.seen(line);
        assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
        stderr
    }

    #[track_caller]
    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.shown(line)).expect("JSON")
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.path().join(path)).expect("a file")
    }

    fn mode(&self, path: &str) -> u32 {
        let found = fs::metadata(self.0.path().join(path)).expect("a file");
        found.permissions().mode() & 0o7777
    }

    /// Where a node's files are.
    fn files(&self, node: &str) -> Paths {
        let folder = self.0.path().join("tls").join(node);
        Paths {
            cert: folder.join("node.crt"),
            key: folder.join("node.key"),
            ca: folder.join("ca.crt"),
        }
    }

    /// All files below a folder, by name.
    fn all(&self, folder: &str) -> Vec<String> {
        fn look(folder: &Path, found: &mut Vec<String>, root: &Path) {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    look(&path, found, root);
                } else {
                    let name = path.strip_prefix(root).expect("below the root");
                    found.push(name.display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        let root = self.0.path().join(folder);
        look(&root, &mut found, &root);
        found.sort();
        found
    }
}

const BOTH: &str = "tls init lb-a=10.0.0.2,fd00::2 lb-b=10.0.0.3";

#[test]
fn two_nodes_get_certificates_that_are_an_identity_each() {
    let place = Place::new();
    let text = place.shown(BOTH);
    assert!(text.starts_with("Made a CA, tls/ca.crt with tls/ca.key, valid until "));
    for words in [
        "lb-a  tls/lb-a/node.crt",
        "in 825 days  10.0.0.2, fd00::2",
        "  scp -p tls/lb-b/* root@lb-b:/etc/lb/tls/\n",
        "Keep tls/ca.key secret and off the nodes",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let expected = [
        "ca.crt",
        "ca.key",
        "lb-a/ca.crt",
        "lb-a/node.crt",
        "lb-a/node.key",
        "lb-b/ca.crt",
        "lb-b/node.crt",
        "lb-b/node.key",
    ];
    assert_eq!(place.all("tls"), expected, "and no drafts");
    for (path, mode) in [
        ("tls", 0o700),
        ("tls/ca.crt", 0o644),
        ("tls/ca.key", 0o600),
        ("tls/lb-a/node.key", 0o600),
        ("tls/lb-b/node.crt", 0o644),
    ] {
        assert_eq!(place.mode(path), mode, "{path}");
    }
    let a = Identity::read(&place.files("lb-a")).expect("an identity");
    let b = Identity::read(&place.files("lb-b")).expect("an identity");
    for address in ["10.0.0.2", "fd00::2"] {
        let address = address.parse().expect("an address");
        assert_eq!(a.names(address), Ok(()));
        b.names(address).expect_err("the other's");
    }
    let left = a.expiry().duration_since(SystemTime::now()).expect("later");
    let day = Duration::from_secs(24 * 3600);
    assert!(left > 824 * day && left < 826 * day, "{left:?}");
}

#[test]
fn the_lines_for_the_configuration_make_one() {
    let place = Place::new();
    let text = place.shown(BOTH);
    let (_, lines) = text.split_once("In /etc/lb/lb.toml").expect("lines");
    for (part, node, listen, peer) in [
        (1, "lb-a", "10.0.0.2:9444", "10.0.0.3:9444"),
        (2, "lb-b", "10.0.0.3:9444", "10.0.0.2:9444"),
    ] {
        let section = lines.split("[ha.sync]").nth(part).expect("a section");
        let config = config(&format!("[ha.sync]{section}"));
        let path = place.0.path().join("tls").join(node).join("lb.toml");
        let config = config.replace("\"tls/", "\"");
        fs::write(&path, config).expect("written");
        let line = format!("check -c {}", path.display());
        assert!(place.shown(&line).contains(" is valid: "), "{node}");
        assert!(
            section.contains(listen) && section.contains(peer),
            "{section}"
        );
    }
}

/// A configuration of a pair with this section.
fn config(sync: &str) -> String {
    format!(
        "[node]\ninterfaces = [\"lo\"]\n[ha]\ninterface = \"lo\"\nvrid = 51\npriority = 150\n\
         addresses = [\"203.0.113.10\"]\n{sync}"
    )
}

#[test]
fn a_ca_that_is_there_is_used_and_no_node_loses_its_certificate() {
    let place = Place::new();
    place.shown(BOTH);
    let before: Vec<String> = ["tls/ca.crt", "tls/ca.key", "tls/lb-a/node.crt"]
        .map(|path| place.read(path))
        .into();
    let expected = "lb: lb-a has a certificate already (tls/lb-a/node.crt): --renew gives it another one, with another key\n";
    assert_eq!(
        place.complaint("tls init lb-c=10.0.0.4 lb-a=10.0.0.2"),
        expected
    );
    assert!(
        !place.0.path().join("tls/lb-c").exists(),
        "nothing was made"
    );

    let text = place.shown("tls init lb-c=10.0.0.4");
    assert!(
        text.starts_with("Used the CA tls/ca.crt, valid until "),
        "{text}"
    );
    assert!(text.contains("peer = \"ADDRESS:9444\""), "{text}");
    let after: Vec<String> = ["tls/ca.crt", "tls/ca.key", "tls/lb-a/node.crt"]
        .map(|path| place.read(path))
        .into();
    assert_eq!(before, after);
    Identity::read(&place.files("lb-c")).expect("an identity of the same CA");

    let text = place.shown("tls init --renew --days 90 lb-a=10.0.0.2");
    assert!(text.contains("in 90 days"), "{text}");
    assert!(!text.contains("[ha.sync]"), "{text}");
    assert_ne!(before[2], place.read("tls/lb-a/node.crt"));
    assert_eq!(place.mode("tls/lb-a/node.key"), 0o600);
    Identity::read(&place.files("lb-a")).expect("an identity");
    let leftover = place.all("tls").iter().any(|file| file.contains(".new"));
    assert!(!leftover, "no drafts");
}

#[test]
fn a_ca_that_cannot_issue_is_told_of_and_left_alone() {
    let place = Place::new();
    place.shown(BOTH);
    let add = "tls init lb-c=10.0.0.4";
    let root = place.0.path().join("tls");
    fs::set_permissions(root.join("ca.key"), Permissions::from_mode(0o640)).expect("changed");
    let said = place.complaint(add);
    assert!(
        said.contains("may be used by others than its owner (mode 0640)"),
        "{said}"
    );

    fs::set_permissions(root.join("ca.key"), Permissions::from_mode(0o600)).expect("changed");
    fs::copy(root.join("lb-a/node.key"), root.join("ca.key")).expect("copied");
    let expected = "lb: the key tls/ca.key does not belong to the certificate tls/ca.crt\n";
    assert_eq!(place.complaint(add), expected);

    fs::copy(root.join("lb-a/node.crt"), root.join("ca.crt")).expect("copied");
    let expected = "lb: the certificate tls/ca.crt is not a CA's: it can issue no others\n";
    assert_eq!(place.complaint(add), expected);

    fs::remove_file(root.join("ca.key")).expect("removed");
    let said = place.complaint(add);
    assert!(
        said.starts_with("lb: there is tls/ca.crt but no tls/ca.key: "),
        "{said}"
    );
    fs::remove_file(root.join("ca.crt")).expect("removed");
    fs::write(root.join("ca.key"), "").expect("written");
    let said = place.complaint(add);
    assert!(
        said.starts_with("lb: there is tls/ca.key but no tls/ca.crt: "),
        "{said}"
    );
    assert!(!root.join("lb-c").exists());
}

#[test]
fn what_cannot_be_a_node_is_refused_before_anything_is_made() {
    let place = Place::new();
    for (nodes, said) in [
        ("lb-a", "\"lb-a\" names no address: write NODE=ADDRESS"),
        ("lb-a=", "`ADDRESS` must be an IP address, not \"\""),
        ("lb-a=10.0.0.2:9444", "write \"10.0.0.2\""),
        ("lb-a=10.0.0.2,", "must be an IP address"),
        ("lb-a=0.0.0.0", "it stands for any address"),
        (
            "../lb-a=10.0.0.2",
            "\"../lb-a\" cannot be a node's name here",
        ),
        ("..=10.0.0.2", "cannot be a node's name here"),
        ("=10.0.0.2", "\"\" cannot be a node's name here"),
        ("10.0.0.2=10.0.0.2", "cannot be a node's name here"),
        ("a..b=10.0.0.2", "cannot be a node's name here"),
        (
            "lb-a=10.0.0.2 lb-a=10.0.0.3",
            "the node lb-a is given twice",
        ),
        (
            "lb-a=10.0.0.2 lb-b=10.0.0.2",
            "is given to lb-a and to lb-b",
        ),
        ("--days 0 lb-a=10.0.0.2", "--days must be 1 to 3650, not 0"),
        (
            "--days 3651 lb-a=10.0.0.2",
            "--days must be 1 to 3650, not 3651",
        ),
    ] {
        let line = format!("tls init {nodes}");
        let complaint = place.complaint(&line);
        assert!(complaint.contains(said), "{line}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
    assert!(place.all("").is_empty());
    assert_eq!(place.seen("tls init").0, Some(2));
    // What is no folder.
    fs::write(place.0.path().join("tls"), "").expect("written");
    let said = place.complaint("tls init lb-a=10.0.0.2");
    assert!(said.starts_with("lb: cannot write tls"), "{said}");
}

#[test]
fn what_was_made_is_told_to_programs_too() {
    let place = Place::new();
    let made = place.json(&format!("{BOTH} --json --directory d/e"));
    assert_eq!(made["ca"]["made"], true);
    assert_eq!(made["ca"]["key"], "d/e/ca.key");
    let node = &made["nodes"][0];
    assert_eq!(node["name"], "lb-a");
    assert_eq!(node["addresses"][1], "fd00::2");
    assert_eq!(node["certificate"], "d/e/lb-a/node.crt");
    assert!(!made.to_string().contains("PRIVATE"));
}

#[test]
fn certificates_are_shown_with_names_and_expiry_and_keys_are_not() {
    let place = Place::new();
    place.shown(BOTH);
    place.shown("tls init --days 10 lb-c=10.0.0.4");
    let text = place.shown("tls show tls/ca.crt tls/lb-a/node.crt tls/lb-c/node.crt");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("FILE "), "{text}");
    assert!(lines[1].contains("CN=Fulcrum CA of 20"), "{text}");
    assert!(lines[1].ends_with("(a CA)"), "{text}");
    assert!(lines[2].contains("CN=lb-a"), "{text}");
    assert!(lines[2].ends_with("lb-a, 10.0.0.2, fd00::2"), "{text}");
    assert!(lines[3].contains("in 10 days"), "{text}");
    let coloured = place.shown("--color always tls show tls/lb-a/node.crt tls/lb-c/node.crt");
    assert!(coloured.contains("\u{1b}[32min 82"), "{coloured:?}");
    assert!(coloured.contains("\u{1b}[33min "), "{coloured:?}");

    let json = place.json("tls show --json tls/lb-a/node.crt");
    assert_eq!(json[0]["subject"], "CN=lb-a");
    assert_eq!(json[0]["names"][1], "10.0.0.2");
    assert_eq!(json[0]["authority"], false);
    assert!(json[0]["expires_in"].as_i64() > Some(824 * 24 * 3600));

    let expected = "lb: tls/lb-a/node.key has no certificate in PEM form\n";
    assert_eq!(place.complaint("tls show tls/lb-a/node.key"), expected);
    let expected = "lb: cannot read the certificate none.crt: there is no such file\n";
    assert_eq!(place.complaint("tls show none.crt"), expected);
}

/// The section of node lb-a, in the folder of a place.
const SYNC: &str = "[ha.sync]\nlisten = \"10.0.0.2:9444\"\npeer = \"10.0.0.3:9444\"\n\
    cert = \"tls/lb-a/node.crt\"\nkey = \"tls/lb-a/node.key\"\nca = \"tls/lb-a/ca.crt\"\n";

#[test]
fn a_configuration_with_an_identity_that_does_not_fit_is_refused_by_check_and_run() {
    let place = Place::new();
    place.shown(BOTH);
    let write = |sync: &str| {
        fs::write(place.0.path().join("lb.toml"), config(sync)).expect("written");
    };
    write(SYNC);
    assert_eq!(
        place.shown("check -c lb.toml"),
        "lb.toml is valid: 0 services, 0 backends\n"
    );
    let text = place.shown("tls show -c lb.toml");
    assert_eq!(
        text.lines().count(),
        3,
        "the certificate and its CA: {text}"
    );

    for (sync, said) in [
        (
            SYNC.replace("lb-a/node.key", "lb-b/node.key"),
            "lb: the key tls/lb-b/node.key does not belong to the certificate tls/lb-a/node.crt\n",
        ),
        (
            SYNC.replace("10.0.0.2:", "10.0.0.9:"),
            "lb: the certificate tls/lb-a/node.crt does not name 10.0.0.9, the address of this node, but lb-a, 10.0.0.2, fd00::2: the other node would refuse it\n",
        ),
        (
            SYNC.replace("lb-a/ca.crt", "ca.pem"),
            "lb: cannot read the CA certificate tls/ca.pem: there is no such file\n",
        ),
    ] {
        write(&sync);
        assert_eq!(place.complaint("check -c lb.toml"), said);
        assert_eq!(
            place.complaint("run -c lb.toml"),
            said,
            "before anything else"
        );
    }
    write(&SYNC.replace("10.0.0.2:", "0.0.0.0:"));
    place.shown("check -c lb.toml");
    write("");
    let said = place.complaint("tls show -c lb.toml");
    assert_eq!(
        said,
        "lb: lb.toml names no certificates; name files: `lb tls show FILE`\n"
    );
}

#[test]
fn a_certificate_of_another_folder_is_another_cas() {
    let place = Place::new();
    place.shown(BOTH);
    place.shown("tls init --directory other lb-a=10.0.0.2");
    let mut files = place.files("lb-a");
    files.ca = place.0.path().join("other/ca.crt");
    let fault = Identity::read(&files).expect_err("another CA");
    assert!(matches!(fault, TlsFault::OtherCa { .. }), "{fault}");
}
