//! What strangers send, against the properties of its reader: a bounded number of good
//! ones, most of them damaged, all of which follow from a seed that is printed.

use std::env;

use fastrand::Rng;

/// Gives so many of them to `holds`, which panics if one is not taken for what it is.
/// `LB_TEST_SEED` takes another seed, `variable` another number of them.
pub(crate) fn bounded(
    seed: u64,
    (variable, count, what): (&str, u64, &str),
    good: impl Fn(&mut Rng) -> Vec<u8>,
    holds: impl Fn(&[u8]),
) {
    let seed = number("LB_TEST_SEED", seed);
    let count = number(variable, count);
    println!("seed {seed}, {count} {what}");
    let mut rng = Rng::with_seed(seed);
    for _ in 0..count {
        let mut data = good(&mut rng);
        for _ in 0..rng.usize(0..4) {
            damage(&mut rng, &mut data);
        }
        holds(&data);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

fn damage(rng: &mut Rng, data: &mut Vec<u8>) {
    if data.is_empty() {
        return;
    }
    let at = rng.usize(0..data.len());
    match rng.u8(0..5) {
        0 => data[at] ^= 1 << rng.u8(0..8),
        1 => data[at] = [0, 1, 0x7f, 0x80, 0xff][rng.usize(0..5)],
        2 => data.truncate(at),
        3 => data.insert(at, rng.u8(..)),
        _ => data.extend((0..rng.usize(1..40)).map(|_| rng.u8(..))),
    }
}
