//! The prefixes that tunnels may come from.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why a text is no prefix.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotAPrefix {
    /// It is something else.
    #[error("{0:?} is not a prefix; write an address and a length, such as 198.18.0.0/16")]
    Form(String),
    /// It is the address of somebody within a prefix.
    #[error("{written} has bits set beyond the first {}; the prefix around it is {meant}", meant.length)]
    BitsBeyond {
        /// As it was written.
        written: Prefix,
        /// As it was probably meant.
        meant: Prefix,
    },
}

impl Prefix {
    /// The first of its addresses.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses have in common.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// The same without the bits beyond its length.
    fn first(self) -> Self {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let kept = u32::MAX
                    .checked_shl(32 - u32::from(self.length))
                    .unwrap_or(0);
                IpAddr::V4((v4.to_bits() & kept).into())
            }
            IpAddr::V6(v6) => {
                let kept = u128::MAX
                    .checked_shl(128 - u32::from(self.length))
                    .unwrap_or(0);
                IpAddr::V6((v6.to_bits() & kept).into())
            }
        };
        Self { address, ..self }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let written = written(text).ok_or_else(|| NotAPrefix::Form(text.into()))?;
        let meant = written.first();
        if meant == written {
            Ok(meant)
        } else {
            Err(NotAPrefix::BitsBeyond { written, meant })
        }
    }
}

fn written(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let length: u8 = length.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    (length <= width).then_some(Prefix { address, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_read_as_it_is_written() {
        for text in [
            "198.18.0.0/16",
            "100::/64",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.1/32",
        ] {
            assert_eq!(text.parse().map(|p: Prefix| p.to_string()), Ok(text.into()));
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused_with_what_would_be() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "100::/129", "10/8", "x/1"] {
            let error = text.parse::<Prefix>().expect_err("it is none");
            assert_eq!(error, NotAPrefix::Form(text.into()));
        }
        let error = "198.18.0.1/16".parse::<Prefix>().expect_err("bits beyond");
        assert_eq!(
            error.to_string(),
            "198.18.0.1/16 has bits set beyond the first 16; the prefix around it is 198.18.0.0/16"
        );
    }
}
