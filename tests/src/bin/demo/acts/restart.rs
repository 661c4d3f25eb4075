//! The daemon is killed with -9 under load and started again. Forwarding is
//! the kernel's: it does not notice.

use std::{
    collections::BTreeMap,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ::tests::netns::Host;
use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    background::{Background, goes_on},
    kept::{Kept, homes},
    load::{Load, Request, failed, slowest},
    world::{NAMES, SERVICE, World, counted, milliseconds},
};

/// Requests a second, from so many clients.
const RATE: u32 = 200;
const CLIENTS: u32 = 4;

/// Connections that stay open: five full sequences.
const KEPT: usize = 30;

/// How long the balancer is without a daemon.
const WITHOUT: Duration = Duration::from_secs(4);

/// How long the load goes on before and after.
const AROUND: Duration = Duration::from_secs(3);

/// Between one look at the interface and the next.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn restart(world: &mut World<'_>) -> Result<()> {
    let kept = Kept::open(&world.net.client, world.service.listen, KEPT)?;
    world.screen.see(&format!(
        "{KEPT} connections stay open and in use: {}; {CLIENTS} clients make {RATE} requests a second",
        homes(&kept.opened, &NAMES)
    ));
    let load = world.load(RATE, CLIENTS);
    pass(world, &load, AROUND, "with the daemon")?;
    let flows = flows(world)?;
    let link = link(world)?;
    let watch = watch(&world.net.balancer);
    kill_and_restart(world, &load)?;
    pass(world, &load, AROUND, "with the new daemon")?;
    let requests = load.finish()?;
    note_requests(world, &requests);
    note_link(world, &link, watch)?;
    note_connections(world, kept, &flows)
}

fn kill_and_restart(world: &mut World<'_>, load: &Load) -> Result<()> {
    let pid = world.daemon.pid().unwrap_or_default();
    world
        .screen
        .see(&format!("the daemon is killed: kill -9 {pid}"));
    world.daemon.kill9()?;
    pass(world, load, WITHOUT, "without a daemon")?;
    let started = Instant::now();
    let restarted = world.daemon.restart();
    // Ctrl-C in a terminal reaches the daemon too: that it ended is no fault.
    world.stop.check()?;
    restarted?;
    world.screen.see(&format!(
        "a daemon is started again: process {}, ready after {}",
        world.daemon.pid().unwrap_or_default(),
        milliseconds(started.elapsed())
    ));
    Ok(())
}

/// Lets time pass, and tells each second how the load does.
fn pass(world: &World<'_>, load: &Load, time: Duration, how: &str) -> Result<()> {
    let (begun, (before, _)) = (Instant::now(), load.so_far());
    while let left = time.saturating_sub(begun.elapsed())
        && !left.is_zero()
    {
        world.stop.pause(left.min(Duration::from_secs(1)))?;
        let (made, lost) = load.so_far();
        world.screen.see(&format!(
            "{:.0} s {how}: {} requests, {} since the beginning",
            begun.elapsed().as_secs_f64(),
            made - before,
            counted(lost, "failure", "failures")
        ));
    }
    Ok(())
}

fn note_requests(world: &mut World<'_>, requests: &[Request]) {
    let lost = failed(requests).count();
    world.screen.see(&format!(
        "{} requests in all, {}; the slowest took {}",
        requests.len(),
        counted(lost, "failure", "failures"),
        milliseconds(slowest(requests))
    ));
    if let Some(Err(reason)) = failed(requests).next().map(|request| &request.outcome) {
        world.screen.detail(&format!("the first said: {reason}"));
    }
    world.promises.note(
        &format!("kill -9 and restart of the daemon at {RATE} requests a second: none fails"),
        format!("{lost} of {} failed", requests.len()),
        lost == 0,
    );
}

/// Whether the program was attached all the time, by the same link.
fn note_link(
    world: &mut World<'_>,
    before: &Value,
    watch: Background<(usize, usize)>,
) -> Result<()> {
    let (looks, away) = watch.finish()?;
    let after = link(world)?;
    let there = looks - away;
    world.screen.see(&format!(
        "the XDP program was on eth0 at {there} of {looks} looks; its link was number {} and is number {}",
        before["id"], after["id"]
    ));
    world.promises.note(
        "the XDP program never leaves the interface",
        format!("there at {there} of {looks} looks, by the same link"),
        looks > 0 && away == 0 && before["id"].is_u64() && before["id"] == after["id"],
    );
    Ok(())
}

/// Whether open connections went on, and are the same flows as before.
fn note_connections(
    world: &mut World<'_>,
    kept: Kept,
    before: &BTreeMap<String, Value>,
) -> Result<()> {
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
    world.trouble(&lives);
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

/// Looks at the balancer's interface, again and again; tells how often it has
/// looked, and how often there was no program.
fn watch(balancer: &Host) -> Background<(usize, usize)> {
    Background::start(balancer, |going| {
        let (mut looks, mut away) = (0, 0);
        while goes_on(going) {
            let shown = Command::new("ip")
                .args(["-json", "link", "show", "dev", "eth0"])
                .output();
            let attached = shown.is_ok_and(|shown| is_attached(&shown.stdout));
            looks += 1;
            away += usize::from(!attached);
            thread::sleep(LOOK);
        }
        (looks, away)
    })
}

/// Whether `ip` shows an interface with an XDP program.
fn is_attached(json: &[u8]) -> bool {
    serde_json::from_slice::<Value>(json).is_ok_and(|links| links[0]["xdp"]["prog"]["id"].is_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_a_program_if_ip_names_its_number() {
        let with = r#"[{"ifname":"eth0","xdp":{"mode":1,"prog":{"id":7}}}]"#;
        assert!(is_attached(with.as_bytes()));
        assert!(!is_attached(br#"[{"ifname":"eth0"}]"#));
        assert!(!is_attached(b""));
    }
}
