//! What a daemon leaves for the next one, besides what is pinned.
//!
//! A small file beside the control socket (`lb.sock` → `lb.state.json`). Like
//! the pins it does not outlive a reboot: what was changed at run time is meant
//! for the traffic of that run.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::host::forwarding::Changed;
use crate::model::Overrides;

/// No state is anywhere near as large; what is larger is not ours.
const MAX_BYTES: u64 = 64 << 20;

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// What was changed at run time.
    pub overrides: Overrides,
    /// The host's settings that were changed, to be put back with
    /// `--detach-on-exit`, also by a later daemon.
    pub sysctls: Vec<Changed>,
}

/// Where the state of the daemon with this control socket is kept.
pub fn path(control: &Path) -> PathBuf {
    control.with_extension("state.json")
}

/// Reads the state; none is a new one.
pub fn load(path: &Path) -> anyhow::Result<State> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            anyhow::bail!(
                "{} is too large to be the state of lb; remove it",
                path.display()
            )
        }
        _ => {}
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| {
        format!(
            "{} is damaged; remove it to start with what the file says",
            path.display()
        )
    })
}

/// Writes the state, whole or not at all.
pub fn save(path: &Path, state: &State) -> anyhow::Result<()> {
    let new = path.with_extension("json.new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::TargetId;

    #[test]
    fn what_is_saved_is_what_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("lb.sock"));
        assert_eq!(path.file_name().unwrap(), "lb.state.json");
        assert_eq!(load(&path).unwrap(), State::default());
        let mut state = State::default();
        let id = TargetId {
            service: "web".into(),
            backend: "web1".into(),
        };
        state.overrides.entry(&id).weight = Some(7);
        save(&path, &state).unwrap();
        assert_eq!(load(&path).unwrap(), state);
    }

    #[test]
    fn a_damaged_file_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lb.state.json");
        fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", load(&path).unwrap_err()).contains("remove it"));
    }
}
