//! `lb drops`: what was dropped and why, in words.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use super::output::{Cell, Column, NOTABLE, PLAIN, Screen, Table, styled};
use super::{Context, Json, units};
use crate::api::client::{Client, Resource};
use crate::api::types::{DropCount, DropShare};

/// How often the counters are read while they are followed.
const RHYTHM: Duration = Duration::from_secs(1);

/// Show why packets were dropped, for whom, and what to do about it
///
/// What is counted here was dropped by the balancer. Packets that it leaves to
/// the host, or sends on, have their reasons too: see --all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb drops                     every reason that occurred
  lb drops --follow            what is dropped now, each second
  lb drops --all               also why packets were sent on or left to the host
  lb drops --follow --json     one line of JSON for each second with drops")]
pub(super) struct Drops {
    /// Print what is dropped from now on, each second, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Every verdict that occurred, also on packets that were not dropped
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    json: Json,
}

impl Drops {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let Context { client, screen } = context;
        let resource = Resource::new(["drops"]).with("all", self.all.then_some(true));
        if self.follow {
            return tokio::select! {
                ended = follow(client, screen, &resource, self.json) => ended,
                _ctrl_c = tokio::signal::ctrl_c() => Ok(()),
            };
        }
        let drops: Vec<DropCount> = client.get(&resource).await?;
        screen.result(self.json, &drops, |drops, width| {
            text(drops, self.all, width)
        })?;
        Ok(())
    }
}

async fn follow(
    client: &Client,
    screen: &mut Screen,
    resource: &Resource,
    json: Json,
) -> anyhow::Result<()> {
    let mut before: Vec<DropCount> = client.get(resource).await?;
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Without it the command goes on as well.
        let _ = writeln!(stderr, "Watching; Ctrl-C ends.");
    }
    let mut rhythm = interval(RHYTHM);
    rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rhythm.tick().await;
        let now: Vec<DropCount> = client.get(resource).await?;
        let news = increase(&before, &now);
        before = now;
        if news.is_empty() {
            continue;
        }
        screen.text(&if json.json {
            serde_json::to_string(&news).expect("our own types have a JSON form") + "\n"
        } else {
            let time = humantime::format_rfc3339_seconds(SystemTime::now());
            lines(&time.to_string(), &news)
        })?;
    }
}

/// What was counted between two readings. A counter that went back was begun
/// anew, from zero.
fn increase(before: &[DropCount], now: &[DropCount]) -> Vec<DropCount> {
    let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
    let mut news = Vec::new();
    for count in now {
        let old = before.iter().find(|old| old.reason == count.reason);
        let packets = since(old.map_or(0, |old| old.packets), count.packets);
        if packets == 0 {
            continue;
        }
        let share_before = |share: &DropShare| {
            let same =
                |old: &&DropShare| old.service == share.service && old.backend == share.backend;
            let old = old.and_then(|old| old.by.iter().find(same));
            old.map_or(0, |old| old.packets)
        };
        let shares = count.by.iter().map(|share| DropShare {
            packets: since(share_before(share), share.packets),
            ..share.clone()
        });
        news.push(DropCount {
            packets,
            by: shares.filter(|share| share.packets > 0).collect(),
            ..count.clone()
        });
    }
    news
}

/// One line for each reason and for whom.
fn lines(time: &str, news: &[DropCount]) -> String {
    let mut text = String::new();
    for count in news {
        let reason = styled(NOTABLE, &count.reason);
        let mut line = |packets: u64, whom: &str| {
            let packets = format!("+{packets}");
            writeln!(text, "{time} {packets:>8}  {reason}{whom}")
                .expect("a string takes whatever is written");
        };
        for share in &count.by {
            line(share.packets, &format!("  {}", whom(share)));
        }
        let named: u64 = count.by.iter().map(|share| share.packets).sum();
        if count.packets > named {
            line(count.packets - named, "");
        }
    }
    text
}

/// The reasons with what they mean, the most frequent first; `all` leaves out
/// none, and shows what became of the packets.
pub(super) fn text(drops: &[DropCount], all: bool, width: Option<usize>) -> String {
    let mut drops: Vec<&DropCount> = drops
        .iter()
        .filter(|drop| all || drop.packets > 0)
        .collect();
    if drops.is_empty() {
        return "No packet was dropped.\n".to_owned();
    }
    drops.sort_by_key(|drop| std::cmp::Reverse(drop.packets));
    let rows = drops.into_iter().flat_map(rows);
    let (reason, packets) = (Column::Left("REASON"), Column::Right("PACKETS"));
    let meaning = Column::Left("MEANING");
    if all {
        let mut table = Table::new([reason, packets, Column::Left("VERDICT"), meaning]);
        rows.for_each(|row| table.row(row));
        table.render(width)
    } else {
        let mut table = Table::new([reason, packets, meaning]);
        rows.for_each(|[reason, packets, _drop, meaning]| table.row([reason, packets, meaning]));
        table.render(width)
    }
}

/// A reason, and below it for whom.
fn rows(drop: &DropCount) -> Vec<[Cell; 4]> {
    let style = if drop.packets > 0 && drop.verdict == "drop" {
        NOTABLE
    } else {
        PLAIN
    };
    let mut rows = vec![[
        Cell::new(style, drop.reason.as_str()),
        units::count(drop.packets).into(),
        drop.verdict.as_str().into(),
        drop.help.as_str().into(),
    ]];
    let mut shares: Vec<&DropShare> = drop.by.iter().filter(|share| share.packets > 0).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.packets));
    rows.extend(shares.into_iter().map(|share| {
        let whom = format!("  {}", whom(share));
        let packets = units::count(share.packets);
        [whom.into(), packets.into(), "".into(), "".into()]
    }));
    rows
}

/// Whose packets they were, as far as it was known.
fn whom(share: &DropShare) -> String {
    match (&share.service, &share.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => service.clone(),
        (None, Some(backend)) => format!("?/{backend}"),
        (None, None) => "no service".to_owned(),
    }
}
