//! How much work the program is to the kernel's verifier, which refuses it beyond
//! a million instructions gone through.

use anyhow::{Context as _, Result, ensure};
use tests::kernel::{Kernel, PROGRAMS, in_namespace};
use tests::world::{Side as _, World};

/// What is left is for kernels whose verifier goes through more.
const MOST: u32 = 400_000;

#[test]
fn the_verifier_is_far_from_its_limit_for_both_flavours() -> Result<()> {
    for name in PROGRAMS {
        in_namespace(|| {
            let mut kernel = Kernel::of(name);
            kernel.begin(&World::empty())?;
            let verified = kernel.verified()?.context("this kernel does not tell")?;
            println!("{name}: {verified} instructions gone through");
            ensure!(
                verified <= MOST,
                "{name}: {verified} instructions gone through"
            );
            Ok(())
        })?;
    }
    Ok(())
}
