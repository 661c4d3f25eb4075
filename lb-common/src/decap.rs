//! What both sides of `lb decap` must agree on: everything that can happen to
//! a packet there, and the sizes of its two tables.
//!
//! The list is apart from [`crate::verdict`]: it is of another program, which
//! runs on another host and says other things. It has the same form.

use crate::Action;

/// The most prefixes that tunnels may come from.
pub const MAX_SOURCES: u32 = 64;

/// The most addresses of the host that tunnels may lead to.
pub const MAX_ADDRESSES: u32 = 4_096;

macro_rules! outcomes {
    ($($number:literal $variant:ident $name:literal $action:ident $help:literal)+) => {
        /// What became of one packet, and why.
        ///
        /// A whole word, for the same reason as [`crate::Verdict`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Outcome {
            $(#[doc = $help] $variant = $number,)+
        }

        impl Outcome {
            /// Every outcome, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What the kernel does with such a packet.
            pub const fn action(self) -> Action {
                match self { $(Self::$variant => Action::$action,)+ }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

outcomes! {
    0 Unwrapped "unwrapped" Pass
        "A tunnel packet whose inner packet was given to the host's stack."
    1 NotTunnel "not_tunnel" Pass
        "Anything but IPv4 or IPv6 within IPv4 or IPv6: left to the host as it came."
    2 NotForUs "not_for_us" Pass
        "A tunnel packet to an address that is not this host's: left to the host as it came."
    3 UntrustedSource "untrusted_source" Pass
        "A tunnel packet from an address outside --from: left to the host as it came. If it was the balancer, name its tunnel addresses by --from."
    4 OuterFragment "outer_fragment" Pass
        "A fragment of a tunnel packet, which cannot be unwrapped alone: left to the host as it came. Raise the MTU between the balancer and this host by 40 bytes, or lower the service's max_mss."
    5 Truncated "truncated" Pass
        "The frame ends before the outer packet does, or its headers: left to the host as it came, which discards it."
    6 BadOuter "bad_outer" Pass
        "The outer IP header contradicts itself (version or length): left to the host as it came, which discards it."
    7 BadInner "bad_inner" Drop
        "The inner packet is not of the IP version that the outer one says, or its header contradicts itself: damaged or forged."
    8 InnerTooLong "inner_too_long" Drop
        "The inner packet says that it is longer than what the outer one carries: damaged or forged."
    9 BadInnerSource "bad_inner_source" Drop
        "The inner source address can belong to no sender (unspecified, loopback, multicast or broadcast): forged."
    10 Congested "congested" Drop
        "Marked as congested on the way through the tunnel, and its ends do not understand the mark: dropped, which they do understand (RFC 6040, section 4.2)."
    11 NotMoved "not_moved" Pass
        "The kernel did not let go of the outer header: left to the host as it came. Please report it with the name of the driver."
}

/// Capacity of the table of counters.
pub const OUTCOME_SLOTS: u32 = 16;

const _: () = {
    assert!(Outcome::ALL.len() <= OUTCOME_SLOTS as usize);
    let mut i = 0;
    while i < Outcome::ALL.len() {
        assert!(
            Outcome::ALL[i] as usize == i,
            "the numbers of outcomes are their places in the list"
        );
        i += 1;
    }
};
