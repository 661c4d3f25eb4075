//! The program on its way into the kernel.
//!
//! Its verifier takes more than half a second. Meanwhile the tables can be filled:
//! who needs the program itself waits for it.

use std::thread::{self, JoinHandle};

use anyhow::{Context as _, anyhow, bail};
use aya::Ebpf;
use aya::programs::{ProgramError, Xdp};

/// See the module.
pub(super) struct Loading {
    /// The name of the program, of the flavours in the object.
    name: &'static str,
    stage: Stage,
}

enum Stage {
    UnderWay(JoinHandle<anyhow::Result<Ebpf>>),
    Loaded(Ebpf),
    Refused,
}

impl Loading {
    /// Hands the program to the kernel.
    pub(super) fn begin(mut ebpf: Ebpf, name: &'static str) -> Self {
        let stage = Stage::UnderWay(thread::spawn(move || {
            named(&mut ebpf, name)?.load().map_err(refused)?;
            Ok(ebpf)
        }));
        Self { name, stage }
    }

    /// The program; loaded.
    pub(super) fn program(&mut self) -> anyhow::Result<&mut Xdp> {
        let name = self.name;
        named(self.object()?, name)
    }

    /// The object that it is in; the program is loaded.
    pub(super) fn object(&mut self) -> anyhow::Result<&mut Ebpf> {
        if let Stage::UnderWay(_) = self.stage
            && let Stage::UnderWay(thread) = std::mem::replace(&mut self.stage, Stage::Refused)
        {
            let loaded = thread.join();
            self.stage = Stage::Loaded(loaded.map_err(|_| anyhow!("loading panicked"))??);
        }
        match &mut self.stage {
            Stage::Loaded(ebpf) => Ok(ebpf),
            Stage::UnderWay(_) | Stage::Refused => bail!("the kernel refused the XDP program"),
        }
    }
}

pub(super) fn named<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    ebpf.program_mut(name)
        .with_context(|| format!("the object holds no program `{name}`"))?
        .try_into()
        .with_context(|| format!("the program `{name}` is not for XDP"))
}

/// One sentence for the person who starts the daemon; the verifier's whole
/// reasoning goes to the log.
pub(crate) fn refused(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            log::debug!("the verifier's log:\n{verifier_log}");
            let log = verifier_log.to_string();
            let reason = log.lines().rev().find(|line| {
                !line.is_empty()
                    && !["verification time", "stack depth", "processed"]
                        .iter()
                        .any(|start| line.starts_with(start))
            });
            anyhow!(
                "the kernel refused the XDP program ({io_error}: {}); please report this with the kernel's version and the log of RUST_LOG=debug",
                reason.unwrap_or("no reason given")
            )
        }
        other => anyhow::Error::new(other).context("the XDP program could not be loaded"),
    }
}
