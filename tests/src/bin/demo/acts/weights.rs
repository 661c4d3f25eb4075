//! 600 new connections, from clients on every processor at once, are divided
//! exactly by weight.

use std::thread::{self, available_parallelism};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{
    load::Request,
    world::{WEIGHTS, World, counted},
};

const REQUESTS: usize = 600;

pub(crate) fn weights(world: &mut World<'_>) -> Result<()> {
    let clients = available_parallelism().map_or(1, usize::from).min(4);
    world.screen.see(&format!(
        "{REQUESTS} requests, each over a new connection, from {} at once, each on a processor \
         of its own",
        counted(clients, "client", "clients")
    ));
    let requests = ask(world, clients)?;
    let shares = world.shares(&requests, WEIGHTS);
    world.promises.note(
        "600 new connections at weights 3:2:1 are exactly 300 : 200 : 100",
        shares.line(),
        shares.are_exact(),
    );
    Ok(())
}

/// All requests, divided among so many clients.
fn ask(world: &World<'_>, clients: usize) -> Result<Vec<Request>> {
    let service = world.service.listen;
    let stop = world.stop;
    let client = |number: usize| -> Result<Vec<Request>> {
        let mut processor = CpuSet::new();
        processor.set(number);
        // A processor that this process may not use is no reason to fail.
        let _ = sched_setaffinity(None, &processor);
        let count = (REQUESTS - number).div_ceil(clients);
        (0..count)
            .map(|_| {
                stop.check()?;
                Ok(Request::make(service))
            })
            .collect()
    };
    world.net.client.enter(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|number| scope.spawn(move || client(number)))
                .collect();
            let mut requests = Vec::new();
            for thread in threads {
                let made = thread
                    .join()
                    .map_err(|_| anyhow!("a client of the demonstration panicked"))?;
                requests.extend(made.context("a client stopped")?);
            }
            Ok(requests)
        })
    })
}
