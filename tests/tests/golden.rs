//! The golden cases, on the host and in the kernel, which must agree.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use lb_common::{Action, Verdict};
use tests::cases::{Case, Step, all};
use tests::checksum::checksums_hold;
use tests::host::Host;
use tests::kernel::{Kernel, SHORTEST, in_namespace};
use tests::world::{Side, State};

#[test]
fn the_host_does_what_the_cases_say() -> Result<()> {
    let mut host = Host::new();
    report("host", all().iter().map(|case| run(case, &mut host)))
}

#[test]
fn flows_that_know_their_way_do_what_the_cases_say() -> Result<()> {
    let mut host = Host::vouched();
    report("host", all().iter().map(|case| run(case, &mut host)))
}

#[test]
fn the_kernel_does_what_the_cases_say() -> Result<()> {
    in_namespace(|| {
        let mut kernel = Kernel::default();
        let cases = all();
        let taking_part = cases.iter().filter(|case| case.host_only.is_none());
        report("kernel", taking_part.map(|case| run(case, &mut kernel)))
    })
}

#[test]
fn host_and_kernel_hold_the_same_after_every_step() -> Result<()> {
    in_namespace(|| {
        let (mut host, mut kernel) = (Host::new(), Kernel::default());
        let cases = all();
        let taking_part = cases.iter().filter(|case| case.host_only.is_none());
        report(
            "comparison",
            taking_part.map(|case| {
                let on_host = states(case, &mut host)?;
                let in_kernel = states(case, &mut kernel)?;
                for (place, (host, kernel)) in on_host.iter().zip(&in_kernel).enumerate() {
                    ensure!(
                        host == kernel,
                        "{}: after step {place} the host holds\n{host:#?}\nand the kernel\n{kernel:#?}",
                        case.says
                    );
                }
                Ok(())
            }),
        )
    })
}

#[test]
fn every_verdict_occurs_in_a_case() {
    let cases = all();
    let seen: BTreeSet<Verdict> = arrivals(&cases).map(|(verdict, _)| verdict).collect();
    let missing: Vec<_> = (Verdict::ALL.iter())
        .filter(|verdict| !seen.contains(verdict))
        .collect();
    assert!(missing.is_empty(), "no case shows {missing:?}");
}

#[test]
fn what_a_case_sends_has_good_checksums() {
    for (verdict, [frame, leaves]) in arrivals(&all()) {
        let sent = matches!(verdict.action(), Action::Transmit | Action::Redirect);
        let ours = sent || frame != leaves;
        // What came wrong leaves wrong.
        assert!(
            !ours || !checksums_hold(&frame) || checksums_hold(&leaves),
            "{verdict:?} {leaves:02x?}"
        );
    }
}

#[test]
fn every_case_says_something_else() {
    let cases = all();
    let said: BTreeSet<&str> = cases.iter().map(|case| case.says.as_str()).collect();
    assert_eq!(said.len(), cases.len());
}

fn arrivals(cases: &[Case]) -> impl Iterator<Item = (Verdict, [Vec<u8>; 2])> {
    cases
        .iter()
        .flat_map(|case| &case.steps)
        .filter_map(|step| {
            let Step::Arrives {
                frame,
                verdict,
                leaves,
                ..
            } = step
            else {
                return None;
            };
            Some((*verdict, [frame.clone(), leaves.clone()]))
        })
}

/// All failures at once: together they often tell what one alone does not.
fn report(side: &str, results: impl Iterator<Item = Result<()>>) -> Result<()> {
    let (mut count, mut failures) = (0, Vec::new());
    for result in results {
        count += 1;
        if let Err(failure) = result {
            failures.push(format!("{failure:#}"));
        }
    }
    println!("{side}: {count} cases");
    ensure!(
        failures.is_empty(),
        "{} of {count} cases failed ({side}):\n\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(())
}

fn run(case: &Case, side: &mut impl Side) -> Result<()> {
    side.begin(&case.world)?;
    let mut before = side.state()?;
    for (place, step) in case.steps.iter().enumerate() {
        take(step, side, &before).with_context(|| format!("{}: step {place}", case.says))?;
        before = side.state()?;
    }
    Ok(())
}

fn take(step: &Step, side: &mut impl Side, before: &State) -> Result<()> {
    match step {
        Step::Loses(key) => side.lose(key),
        Step::Lease(held) => side.lease(*held),
        Step::Then(says, holds) => {
            ensure!(holds(before), "it is not so that: {says}\n{before:#?}");
            Ok(())
        }
        Step::Arrives {
            on,
            frame,
            verdict,
            leaves,
        } => {
            ensure!(
                frame.len() >= SHORTEST,
                "the kernel does not take so short a frame"
            );
            let outcome = side.arrive(frame, on.index)?;
            let counted = side.state()?.verdict_since(before);
            ensure!(
                counted == Some(*verdict),
                "the verdict is {counted:?}, not {verdict:?}"
            );
            ensure!(
                outcome.action == verdict.action(),
                "{verdict:?} ends in {:?}",
                outcome.action
            );
            ensure!(
                outcome.frame == *leaves,
                "{verdict:?} leaves\n{:02x?}, not\n{leaves:02x?}",
                outcome.frame
            );
            Ok(())
        }
    }
}

/// What the tables hold after each step.
fn states(case: &Case, side: &mut impl Side) -> Result<Vec<State>> {
    side.begin(&case.world)?;
    let mut states = vec![side.state()?];
    for step in &case.steps {
        match step {
            Step::Loses(key) => side.lose(key)?,
            Step::Lease(held) => side.lease(*held)?,
            Step::Then(..) => {}
            Step::Arrives { on, frame, .. } => drop(side.arrive(frame, on.index)?),
        }
        states.push(side.state()?);
    }
    Ok(states)
}
