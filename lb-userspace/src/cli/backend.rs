//! `lb backend`: the servers behind services, and how they are changed.

mod watch;

use std::num::IntErrorKind;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};

use super::output::{BAD, Cell, Column, GOOD, NOTABLE, PLAIN, Screen, Table, styled};
use super::{Context, Json, refused, units};
use crate::api::client::{Client, PATIENCE_FOR_FLOWS, Resource};
use crate::api::types::{AddBackend, Backend as State, Changed, Drain as DrainRequest, SetWeight};
use crate::config::value;

/// Show backends and change them
///
/// A change is effective for the next connection; existing ones stay where
/// they are. It lasts until `lb overrides clear`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  lb backend list                          all of them
  lb backend weight web web1 5             more connections for web1 of web
  lb backend drain web web1 --wait         no new ones, and wait for the last
  lb backend add web web4 10.0.1.14:8080   one more server")]
pub(super) enum Backend {
    List(List),
    Weight(Weight),
    Drain(Drain),
    Enable(Enable),
    Add(Add),
    Remove(Remove),
}

/// List the backends of one service or of all
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend list               all backends
  lb backend list web           those of web
  lb backend list web --json    the same for programs")]
pub(super) struct List {
    /// Only those of this service
    service: Option<String>,
    #[command(flatten)]
    json: Json,
}

/// Which backend, and how the answer is shown.
#[derive(Debug, Args)]
struct Which {
    /// The service it belongs to
    service: String,
    /// Its name
    backend: String,
    #[command(flatten)]
    json: Json,
}

/// Set the weight, effective for the next connection; existing ones stay
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend weight web web1 5    five shares of web's new connections
  lb backend weight web web1 0    none: the same as to drain it")]
pub(super) struct Weight {
    #[command(flatten)]
    which: Which,
    /// Its share relative to the others: 0 to 256, where 0 drains
    #[arg(value_name = "N", allow_negative_numbers = true)]
    weight: String,
}

/// Give it no new connections; existing ones stay until they end
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend drain web web1                 at once, without waiting
  lb backend drain web web1 --wait          wait for its last connection
  lb backend drain web web1 --wait 5m       at most five minutes; exit status 1 if some are left
  lb backend drain web web1 --deadline 60s  reset those that are left after a minute")]
pub(super) struct Drain {
    #[command(flatten)]
    which: Which,
    /// Wait until no connection is left, or at most so long (30s, 5m)
    ///
    /// A connection whose ends fell silent without ending it counts too.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, value_parser = duration)]
    wait: Option<Option<Duration>>,
    /// Reset the connections that are left after so long (60s, 10m)
    ///
    /// Each is reset by the answer to its next packet, so that its client hears
    /// of it; `lb backend enable` before that lets them stay.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
}

/// Give it new connections again, by the weight it had before it was drained
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend enable web web1")]
pub(super) struct Enable {
    #[command(flatten)]
    which: Which,
}

/// Add a backend to a service, until `lb overrides clear`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend add web web4 10.0.1.14:8080
  lb backend add web6 web4 '[2001:db8::14]:8080' --weight 3")]
pub(super) struct Add {
    /// The service to add it to
    service: String,
    /// What it is to be called
    name: String,
    /// Where it listens: ADDRESS:PORT or [ADDRESS]:PORT
    address: String,
    /// Its share relative to the others: 0 to 256
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        allow_negative_numbers = true
    )]
    weight: String,
    #[command(flatten)]
    json: Json,
}

/// Remove a backend from a service, until `lb overrides clear`
///
/// To let its connections end first, drain it with --wait.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb backend remove web web4")]
pub(super) struct Remove {
    #[command(flatten)]
    which: Which,
}

impl Backend {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let Context { client, screen } = context;
        match self {
            Self::List(list) => list.obey(client, screen).await,
            Self::Drain(drain) => drain.obey(client, screen).await,
            Self::Weight(Weight { which, weight }) => {
                let body = SetWeight {
                    weight: parsed_weight(&weight)?,
                };
                let changed = client.put(&which.resource("weight")?, &body).await?;
                show(screen, which.json, &changed)
            }
            Self::Enable(Enable { which }) => {
                let changed = client.post(&which.resource("enable")?, &()).await?;
                show(screen, which.json, &changed)
            }
            Self::Add(add) => add.obey(client, screen).await,
            Self::Remove(Remove { which }) => {
                let changed = client.delete(&which.itself()?).await?;
                show(screen, which.json, &changed)
            }
        }
    }
}

impl List {
    async fn obey(self, client: &Client, screen: &mut Screen) -> anyhow::Result<()> {
        let resource = Resource::new(["backends"]).with("service", self.service.as_deref());
        let backends: Vec<State> = client.get_within(PATIENCE_FOR_FLOWS, &resource).await?;
        screen.result(self.json, &backends, |list, width| {
            if list.is_empty() {
                nobody(self.service.as_deref())
            } else {
                text(list, width)
            }
        })?;
        Ok(())
    }
}

impl Drain {
    async fn obey(self, client: &Client, screen: &mut Screen) -> anyhow::Result<()> {
        let Which {
            service,
            backend,
            json,
        } = &self.which;
        let mut changed: Changed = client
            .post(&self.which.resource("drain")?, &self.request()?)
            .await?;
        let Some(limit) = self.wait else {
            return show(screen, *json, &changed);
        };
        if !json.json {
            show(screen, *json, &changed)?;
        }
        let last = watch::until_no_flow_is_left(client, service, backend, limit).await?;
        changed.message = format!("{service}/{backend} has no connection left");
        changed.backend = last;
        show(screen, *json, &changed)
    }

    fn request(&self) -> anyhow::Result<DrainRequest> {
        let deadline_ms = match self.deadline {
            Some(deadline) => {
                let deadline = value::drain_deadline(deadline).map_err(|fault| refused(&fault))?;
                Some(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))
            }
            None => None,
        };
        Ok(DrainRequest { deadline_ms })
    }
}

impl Add {
    async fn obey(self, client: &Client, screen: &mut Screen) -> anyhow::Result<()> {
        let service = named("service name", &self.service)?;
        let body = AddBackend {
            name: named("backend name", &self.name)?.to_owned(),
            address: value::address("ADDRESS", &self.address).map_err(|fault| refused(&fault))?,
            weight: parsed_weight(&self.weight)?,
        };
        let resource = Resource::new(["services", service, "backends"]);
        let changed = client.post(&resource, &body).await?;
        show(screen, self.json, &changed)
    }
}

impl Which {
    /// The backend in the API.
    fn itself(&self) -> anyhow::Result<Resource> {
        let [service, backend] = self.names()?;
        Ok(Resource::new(["services", service, "backends", backend]))
    }

    /// Something of the backend's in the API.
    fn resource(&self, part: &str) -> anyhow::Result<Resource> {
        let [service, backend] = self.names()?;
        Ok(Resource::new([
            "services", service, "backends", backend, part,
        ]))
    }

    fn names(&self) -> anyhow::Result<[&str; 2]> {
        Ok([
            named("service name", &self.service)?,
            named("backend name", &self.backend)?,
        ])
    }
}

fn named<'name>(what: &'static str, name: &'name str) -> anyhow::Result<&'name str> {
    match value::name(what, name) {
        Ok(_) => Ok(name),
        Err(fault) => Err(refused(&fault)),
    }
}

/// The duration of --wait or --deadline; a name of what is to be drained may
/// stand there.
fn duration(text: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(text).map_err(
        |_| "a duration is a number with its unit, such as 30s or 5m; names stand before --wait",
    )
}

fn parsed_weight(text: &str) -> anyhow::Result<u16> {
    let range = format!("0 to {}, where 0 drains", value::MAX_WEIGHT);
    let out_of_range = || anyhow!("weight {text} is out of range: {range}");
    match text.parse() {
        Ok(number) => value::weight(number).map_err(|_fault| out_of_range()),
        Err(error) => match error.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => Err(out_of_range()),
            _ => Err(anyhow!(
                "weight {text:?} is not a whole number: write {range}"
            )),
        },
    }
}

fn show(screen: &mut Screen, json: Json, result: &Changed) -> anyhow::Result<()> {
    Ok(screen.result(json, result, changed)?)
}

/// What a change did.
pub(super) fn changed(changed: &Changed, _width: Option<usize>) -> String {
    styled(PLAIN, &changed.message) + "\n"
}

fn nobody(service: Option<&str>) -> String {
    match service {
        Some(service) => {
            format!(
                "No backends in {service}: add one by `lb backend add {service} NAME ADDRESS`.\n"
            )
        }
        None => {
            "No backends: add a [[service.backend]] to the file, then `lb reload`.\n".to_owned()
        }
    }
}

fn text(backends: &[State], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Left("ADDRESS"),
        Column::Left("STATE"),
        Column::Right("WEIGHT"),
        Column::Right("SHARE"),
        Column::Right("FLOWS"),
        Column::Left("WEIGHT FROM"),
        Column::Left("REASON"),
    ]);
    for backend in backends {
        table.row([
            backend.service.as_str().into(),
            backend.name.as_str().into(),
            backend.address.to_string().into(),
            state(backend),
            backend.weight.to_string().into(),
            units::percent(backend.share).into(),
            units::count(backend.active_flows).into(),
            weight_source(backend),
            backend.reason.as_str().into(),
        ]);
    }
    table.render(width)
}

/// The state in a word: what health says, unless it is drained anyway.
pub(super) fn state(backend: &State) -> Cell {
    match backend.state.as_str() {
        "down" => Cell::new(BAD, "down"),
        _ if backend.weight == 0 => Cell::new(NOTABLE, "drained"),
        "up" => Cell::new(GOOD, "up"),
        unknown => Cell::new(NOTABLE, unknown),
    }
}

/// Where the weight comes from, what it would be by the file, and what else
/// bears on what the backend gets.
pub(super) fn weight_source(backend: &State) -> Cell {
    let source = backend.weight_source.as_str();
    let (mut style, mut text) = match (source, backend.configured_weight) {
        ("file", Some(_)) => (PLAIN, source.to_owned()),
        ("file", None) => (NOTABLE, "not in the file".to_owned()),
        (_, Some(weight)) => (NOTABLE, format!("{source} (file: {weight})")),
        (_, None) => (NOTABLE, format!("{source} (not in the file)")),
    };
    if backend.backup {
        text += ", backup";
    }
    if backend.weight_percent < 100 {
        style = NOTABLE;
        text += &format!(", slow start {}%", backend.weight_percent);
    }
    match backend.reset_in_seconds {
        Some(left) if left > 0.0 => text += &format!(", reset in {}", units::span(left)),
        Some(_) => text += ", being reset",
        None => {}
    }
    Cell::new(style, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_judged_in_one_sentence() {
        assert_eq!(parsed_weight("0").ok(), Some(0));
        assert_eq!(parsed_weight("256").ok(), Some(256));
        for (text, sentence) in [
            (
                "257",
                "weight 257 is out of range: 0 to 256, where 0 drains",
            ),
            ("-1", "weight -1 is out of range: 0 to 256, where 0 drains"),
            (
                "99999999999999999999",
                "weight 99999999999999999999 is out of range: 0 to 256, where 0 drains",
            ),
            (
                "1.5",
                "weight \"1.5\" is not a whole number: write 0 to 256, where 0 drains",
            ),
            (
                "",
                "weight \"\" is not a whole number: write 0 to 256, where 0 drains",
            ),
        ] {
            let error = parsed_weight(text).expect_err(text);
            assert_eq!(error.to_string(), sentence);
        }
    }
}
