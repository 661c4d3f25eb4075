//! Is this host fit for what a configuration asks of it, and will it stay so?
//!
//! Each question gives [`Finding`]s: one that is well, one that is worth a warning (it
//! works, but less well, or not for long), or one without which the balancer, or its
//! pair, does not work. Nothing is changed, and a daemon that runs is not disturbed:
//! where `lb run` would find out by trying (does the driver take a program in native
//! mode?), what is known of it is told instead.
//!
//! Facts are gathered here and in the rooms' `find` functions; what they mean is decided
//! by functions without effects.

mod interfaces;
mod pair;
mod system;

use std::path::Path;

use serde::Serialize;

use crate::config;
use crate::links::Links;

/// How a matter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, but less well than it could, or not for long.
    Warn,
    /// It does not work.
    Fail,
}

impl State {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found out about one matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which question this answers.
    pub check: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it, where `found` does not say so itself.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            state: State::Warn,
            ..Self::ok(check, found)
        }
    }

    fn fail(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            state: State::Fail,
            ..Self::ok(check, found)
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// Looks at everything that this file depends on.
pub async fn examine(file: &Path) -> Vec<Finding> {
    let mut findings = vec![system::kernel()];
    let config = match config::load(file) {
        Ok(config) => config,
        Err(errors) => {
            let found = errors.lines().collect::<Vec<_>>().join("; ");
            let finding = Finding::fail("configuration", found)
                .remedy(format!("`lb check -c {}` shows where", file.display()));
            findings.push(finding);
            return findings;
        }
    };
    let valid = format!("{} is valid", file.display());
    findings.push(Finding::ok("configuration", valid));
    findings.extend(system::pins(&config.node.pin_path));
    let links = match Links::connect() {
        Ok(links) => links.list().await,
        Err(error) => Err(error),
    };
    match links {
        Ok(links) => {
            let (plan, found) = interfaces::find(&config, &links);
            findings.extend(found);
            if let Some(plan) = plan {
                findings.extend(system::settings(&config, &plan));
            }
        }
        Err(error) => findings.push(Finding::fail("interfaces", error.to_string())),
    }
    findings.extend(pair::find(&config, file).await);
    findings
}
