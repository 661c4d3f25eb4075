//! The words that stand for a choice, and those of later versions.

use std::fmt;

use lb_common::abi;

use crate::schedule::{ALL, Scheduler};

/// A type that is written as one of a few words.
pub(super) trait Word: Copy + 'static {
    /// The words of this version, and what they mean.
    const CHOICES: &'static [(&'static str, Self)];
    /// The words that only later versions have.
    const LATER: &'static [&'static str];
}

macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$choice_meta:meta])* $variant:ident $word:literal)+
    } later [$($later:literal)*]) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$choice_meta])* $variant,)+
        }

        impl $name {
            /// The word for it in the configuration, on the command line and in JSON.
            $vis const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Word for $name {
            const CHOICES: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
            const LATER: &'static [&'static str] = &[$($later),*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }
    };
}

words! {
    /// How the XDP program is attached to an interface.
    pub enum XdpMode {
        /// Native where the driver can, else generic, and loudly.
        Auto "auto"
        /// In the driver, or not at all.
        Native "native"
        /// In the kernel's stack, with any driver.
        Generic "generic"
    } later []
}

words! {
    /// The transport that is balanced.
    pub enum Protocol {
        /// TCP (RFC 9293).
        Tcp "tcp"
        /// UDP (RFC 768).
        Udp "udp"
    } later []
}

impl Protocol {
    /// Its number in the IP header and in maps.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => abi::TCP,
            Self::Udp => abi::UDP,
        }
    }
}

words! {
    /// How packets of a service reach its backends.
    pub enum Forward {
        /// Both addresses rewritten; backends see the service's address.
        FullNat "full-nat"
        /// The destination rewritten; backends see the client's address.
        Nat "nat"
        /// Only the link address: backends have the service's address too, and
        /// answer clients themselves.
        Dsr "dsr"
        /// Wrapped in another IP header; backends unwrap it, have the service's
        /// address too, and answer clients themselves.
        Tunnel "tunnel"
    } later []
}

impl Forward {
    /// Its number in maps.
    pub const fn number(self) -> u8 {
        match self {
            Self::FullNat => abi::forward::FULL_NAT,
            Self::Nat => abi::forward::NAT,
            Self::Dsr => abi::forward::DSR,
            Self::Tunnel => abi::forward::TUNNEL,
        }
    }

    /// Whether backends answer clients themselves, so that their answers do
    /// not pass here.
    pub const fn one_way(self) -> bool {
        abi::forward::one_way(self.number())
    }
}

words! {
    /// What a health check tries.
    pub enum CheckKind {
        /// That a TCP connection opens.
        Tcp "tcp"
        /// Nothing: the backend counts as healthy.
        None "none"
    } later ["http" "https" "tls" "grpc" "mysql" "postgres" "ping" "agent" "exec"]
}

words! {
    /// Which way a check takes.
    pub enum Via {
        /// To the backend's own address, as any connection from this host.
        Backend "backend"
        /// To the service's address, by the way that its packets go.
        Service "service"
    } later []
}

words! {
    /// What the checksum of an advertisement over IPv4 is made over.
    pub enum HaChecksum {
        /// Whatever the peer's is.
        Auto "auto"
        /// The message and IPv4's pseudo-header.
        PseudoHeader "pseudo-header"
        /// The message alone.
        Plain "plain"
    } later []
}

words! {
    /// What becomes of the flows of a backend that went down.
    pub enum OnDown {
        /// TCP clients are told at once, by a RST, to connect anew; datagrams
        /// go to another backend.
        Reset "reset"
        /// They go to another backend.
        Rehash "rehash"
        /// They stay where they are.
        Keep "keep"
    } later []
}

impl OnDown {
    /// The mark on a backend whose flows that is to become of.
    pub const fn mark(self) -> u8 {
        match self {
            Self::Reset => abi::backend::RESET,
            Self::Rehash => abi::backend::REHASH,
            Self::Keep => 0,
        }
    }
}

/// The schedulers' words stand with the schedulers.
impl Word for &'static Scheduler {
    const CHOICES: &'static [(&'static str, Self)] = &{
        let mut choices = [("", ALL[0]); ALL.len()];
        let mut place = 0;
        while place < choices.len() {
            choices[place] = (ALL[place].name, ALL[place]);
            place += 1;
        }
        choices
    };
    const LATER: &'static [&'static str] = &[];
}
