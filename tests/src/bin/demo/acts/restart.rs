//! The daemon is killed with -9 under load and started again. Forwarding is
//! the kernel's: it does not notice.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;
use tests::netns::Host;

use crate::{
    kept::{Kept, homes},
    load::{failed, slowest},
    world::{NAMES, SERVICE, World, counted, milliseconds},
};

/// Requests a second, from so many clients.
const RATE: u32 = 200;
const CLIENTS: u32 = 4;

/// Connections that stay open: five full sequences.
const KEPT: usize = 30;

/// How long the balancer is without a daemon.
const WITHOUT: Duration = Duration::from_secs(3);

/// How long the load goes on before and after.
const AROUND: Duration = Duration::from_secs(2);

pub(crate) fn restart(world: &mut World<'_>) -> Result<()> {
    let kept = Kept::open(&world.net.client, world.service.listen, KEPT)?;
    world.screen.see(&format!(
        "{KEPT} connections stay open and in use: {}; {CLIENTS} clients make {RATE} requests a second",
        homes(&kept.opened, &NAMES)
    ));
    let load = world.load(RATE, CLIENTS);
    world.stop.pause(AROUND)?;
    let flows = flows(world)?;
    let link = link(world)?;
    let watch = Watch::start(&world.net.balancer);

    let pid = world.daemon.pid().unwrap_or_default();
    world
        .screen
        .see(&format!("the daemon is killed: kill -9 {pid}"));
    world.daemon.kill9()?;
    let killed = Instant::now();
    world.stop.pause(WITHOUT)?;
    let (made, lost) = load.so_far();
    world.screen.see(&format!(
        "{} without a daemon: {made} requests so far, {}",
        milliseconds(killed.elapsed()),
        counted(lost, "failure", "failures")
    ));
    let started = Instant::now();
    let restarted = world.daemon.restart();
    world.stop.check()?;
    restarted?;
    world.screen.see(&format!(
        "the daemon is back as process {}, ready after {}",
        world.daemon.pid().unwrap_or_default(),
        milliseconds(started.elapsed())
    ));
    world.stop.pause(AROUND)?;

    links(world, &link, watch)?;
    connections(world, kept, &flows)?;
    let requests = load.finish()?;
    let lost = failed(&requests).count();
    world.screen.see(&format!(
        "{} requests in all, {}; the slowest took {}",
        requests.len(),
        counted(lost, "failure", "failures"),
        milliseconds(slowest(&requests))
    ));
    if let Some(Err(reason)) = failed(&requests).next().map(|request| &request.outcome) {
        world.screen.detail(&format!("the first said: {reason}"));
    }
    world.promises.note(
        &format!("kill -9 and restart of the daemon: no request fails at {RATE}/s"),
        format!("{lost} of {} failed", requests.len()),
        lost == 0,
    );
    Ok(())
}

/// Notes whether the program was attached all the time, by the same link.
fn links(world: &mut World<'_>, before: &Value, watch: Watch) -> Result<()> {
    let (looks, away) = watch.finish()?;
    let after = link(world)?;
    world.screen.see(&format!(
        "the XDP program was on eth0 at {} of {looks} looks; its link was number {} and is number {}",
        looks - away,
        before["id"],
        after["id"]
    ));
    world.promises.note(
        "the XDP program never leaves the interface",
        format!("attached at {} of {looks} looks, same link", looks - away),
        looks > 0 && away == 0 && before["id"].is_u64() && before["id"] == after["id"],
    );
    Ok(())
}

/// Notes whether open connections go on, and are the same flows as before.
fn connections(world: &mut World<'_>, kept: Kept, before: &BTreeMap<String, Value>) -> Result<()> {
    let after = flows(world)?;
    let adopted = world.daemon.json(&["status"])?["adopted"] == true;
    let lives = kept.finish()?;
    let same = lives.iter().filter(|life| {
        let client = life.client.to_string();
        before.contains_key(&client) && before.get(&client) == after.get(&client)
    });
    let same = same.count();
    let well = lives.iter().filter(|life| life.is_well()).count();
    world.screen.see(&format!(
        "open connections: {well} of {KEPT} went on without a break; {same} of {KEPT} are the \
         same entries of the flow table{}",
        if adopted {
            ", which the new daemon took over"
        } else {
            ""
        }
    ));
    world.promises.note(
        "no flow is lost, and established connections go on",
        format!("{same} of {KEPT} flows kept, {well} of {KEPT} connections whole"),
        adopted && same == KEPT && well == KEPT,
    );
    Ok(())
}

/// The service's flows by their client: where they go, and from what source.
fn flows(world: &World<'_>) -> Result<BTreeMap<String, Value>> {
    let answer = world
        .daemon
        .json(&["flows", "--service", SERVICE, "--limit", "100000"])?;
    let flows = answer["flows"]
        .as_array()
        .context("`lb flows` lists nothing")?;
    let ends = |flow: &Value| {
        let client = flow["client"].as_str()?.to_owned();
        let ends = ["backend", "source", "address"].map(|name| flow[name].clone());
        Some((client, Value::from(ends.to_vec())))
    };
    Ok(flows.iter().filter_map(ends).collect())
}

/// The pinned link, as the kernel describes it.
fn link(world: &World<'_>) -> Result<Value> {
    let pin = world.daemon.pins.join("link-eth0");
    let pin = pin.to_str().context("the pin's path is not text")?;
    let text = world
        .net
        .balancer
        .run("bpftool", &["--json", "link", "show", "pinned", pin])?;
    serde_json::from_str(&text).context("bpftool printed no JSON")
}

/// Looks at the balancer's interface, again and again. Dropped, it ends soon.
struct Watch {
    going: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    thread: JoinHandle<usize>,
}

impl Watch {
    fn start(balancer: &Host) -> Self {
        let going = Arc::new(AtomicBool::new(true));
        let looks = Arc::new(AtomicUsize::new(0));
        let (asked, counted, host) = (Arc::clone(&going), Arc::clone(&looks), balancer.clone());
        let thread = thread::spawn(move || {
            let mut away = 0;
            while asked.load(Ordering::Relaxed) {
                let shown = host.run("ip", &["-json", "link", "show", "dev", "eth0"]);
                let attached = shown.is_ok_and(|text| is_attached(&text));
                away += usize::from(!attached);
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(25));
            }
            away
        });
        Self {
            going,
            looks,
            thread,
        }
    }

    /// How often it has looked, and how often there was no program.
    fn finish(self) -> Result<(usize, usize)> {
        self.going.store(false, Ordering::Relaxed);
        let away = self
            .thread
            .join()
            .map_err(|_| anyhow!("the watch over the link panicked"))?;
        Ok((self.looks.load(Ordering::Relaxed), away))
    }
}

/// Whether `ip` shows an interface with an XDP program.
fn is_attached(json: &str) -> bool {
    serde_json::from_str::<Value>(json).is_ok_and(|links| links[0]["xdp"]["prog"]["id"].is_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_a_program_if_ip_names_its_number() {
        let with = r#"[{"ifname":"eth0","xdp":{"mode":1,"prog":{"id":7}}}]"#;
        assert!(is_attached(with));
        assert!(!is_attached(r#"[{"ifname":"eth0"}]"#));
        assert!(!is_attached(""));
    }
}
