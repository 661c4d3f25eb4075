//! How much work the program is to the kernel's verifier, which refuses it beyond
//! a million instructions gone through.

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Settings;
use tests::kernel::{Kernel, PROGRAMS, in_namespace};
use tests::world::{STEADY, Side as _, World};

/// What is left is for kernels whose verifier goes through more.
const MOST: u32 = 400_000;

#[test]
fn the_verifier_is_far_from_its_limit_for_both_flavours_alone_and_in_a_pair() -> Result<()> {
    for (name, paired) in PROGRAMS.into_iter().flat_map(|name| [(name, 0), (name, 1)]) {
        in_namespace(|| {
            let mut kernel = Kernel::of(name);
            kernel.begin(&World::empty().with(Settings { paired, ..STEADY }))?;
            let verified = kernel.verified()?.context("this kernel does not tell")?;
            println!("{name}, paired {paired}: {verified} instructions gone through");
            ensure!(
                verified <= MOST,
                "{name}, paired {paired}: {verified} instructions gone through"
            );
            Ok(())
        })?;
    }
    Ok(())
}
