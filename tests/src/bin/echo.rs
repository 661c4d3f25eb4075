//! A server of the tests ([`tests::netns::EchoServer`]): `echo NUMBER ADDRESS`.

use std::env;

use anyhow::{Context as _, Result};
use tests::netns::serve_echoes;

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().context("usage: echo NUMBER ADDRESS");
    serve_echoes(next()?.parse()?, next()?.parse()?)
}
