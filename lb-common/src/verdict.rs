//! Everything that can happen to a packet, as one flat list.
//!
//! The number is the index of the packet's counter and is never reused; the
//! name is the metric label and the word the command line uses; the help says
//! what happened and what to do about it. The README's table, the metrics and
//! `lb drops` are all made from this list.

/// What the kernel does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To the host's own network stack.
    Pass,
    /// Back out of the interface it came in on.
    Transmit,
    /// Out of another interface.
    Redirect,
    /// Nowhere.
    Drop,
}

impl Action {
    /// The value of the `verdict` label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Transmit => "tx",
            Self::Redirect => "redirect",
            Self::Drop => "drop",
        }
    }
}

macro_rules! verdicts {
    ($($(#[$meta:meta])* $number:literal $variant:ident $name:literal $action:ident $help:literal)+) => {
        /// What became of one packet, and why.
        ///
        /// A whole word, because the compiler moves a `Result` with a smaller error in
        /// pieces that the verifier finds misaligned on its stack.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verdict {
            $(#[doc = $help] $(#[$meta])* $variant = $number,)+
        }

        impl Verdict {
            /// Every verdict, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in metrics, on the command line and in the documentation.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What the kernel does with such a packet.
            #[inline(always)]
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

verdicts! {
    0 NotIp "not_ip" Pass
        "Neither IPv4 nor IPv6, tagged or not (ARP, LLDP, MPLS …): left to the host."
    1 NotTransport "not_transport" Pass
        "IP, but neither TCP nor UDP nor ICMP about them (VRRP, ESP, neighbour discovery …): left to the host."
    2 NoService "no_service" Pass
        "Not for any service and not an answer from a backend: left to the host."
    3 Truncated "truncated" Pass
        "The frame ends before the addresses and ports can be read: left to the host, which discards it."
    4 BadHeader "bad_header" Pass
        "The IP header contradicts itself (version or header length): left to the host, which discards it."
    5 LaterFragment "later_fragment" Pass
        "A later fragment of a datagram that is not for a service: left to the host, like the first."
    6 ForwardTx "forward_tx" Transmit
        "From a client to a backend, out of the interface it came in on."
    7 ForwardRedirect "forward_redirect" Redirect
        "From a client to a backend, out of another interface."
    8 ReplyTx "reply_tx" Transmit
        "From a backend to a client, out of the interface it came in on."
    9 ReplyRedirect "reply_redirect" Redirect
        "From a backend to a client, out of another interface."
    10 NeighbourPending "neighbour_pending" Pass
        "Translated and given to the host's stack, because the next hop's link address is not known yet: the stack resolves it and sends the packet on. A few after a start are normal; many mean that the next hop does not answer ARP or neighbour discovery."
    11 LocalDestination "local_destination" Pass
        "Translated and given to the host's stack, because the destination is this host itself, or because the routing table says nothing about it (the kernel does not tell the two apart): see `ip route get`."
    12 LengthMismatch "length_mismatch" Drop
        "The IP length is longer than the frame or shorter than its own headers: damaged or forged."
    13 ShortTransport "short_transport" Drop
        "The frame ends inside the TCP or UDP header: damaged or forged."
    14 FragmentOutOfOrder "fragment_out_of_order" Drop
        "A later fragment to a service's address, whose first fragment, which has the ports, came after it, not at all, or was dropped itself (under its own verdict). Many mean that something on the way puts fragments out of order, or loses them; lower the sender's MTU."
    15 TtlExpired "ttl_expired" Drop
        "The TTL or hop limit ran out here, and the sender was not told, because too many were told within this second or because nobody may be told of such a packet."
    16 BadSource "bad_source" Drop
        "The source address can belong to no sender (unspecified, loopback, multicast or broadcast): forged."
    17 BadFlags "bad_flags" Drop
        "A combination of TCP flags that no connection produces (such as SYN with FIN or RST): a scan."
    18 NoBackend "no_backend" Drop
        "The service has no backend to offer: all are down, drained or removed. See `lb service show`."
    19 NoFlow "no_flow" Drop
        "TCP to a service, neither a new connection nor one that is known: it ended, or was begun before the balancer knew it."
    20 OrphanReply "orphan_reply" Drop
        "From a backend to a translated port that no connection uses any more: a late answer."
    21 PortsExhausted "ports_exhausted" Drop
        "No free source port towards this backend for a full-nat connection: more than about 30,000 at once to one address and port. Add backends or use `nat`."
    22 FlowTableFull "flow_table_full" Drop
        "The table of connections has no place for another: all that it could stand in are held by connections that live. Raise node.max_flows."
    23 NoRoute "no_route" Drop
        "The host's routing table forbids the way to the destination (a blackhole, prohibit or unreachable route), or in dsr mode has none to the backend's network: see `ip route get`."
    24 TooBig "too_big" Drop
        "Larger than the MTU on the way out, and the sender was not told, because too many were told within this second or because nobody may be told of such a packet. Make the MTUs equal, or set max_mss."
    25 EgressNotAttached "egress_not_attached" Drop
        "The way out is an interface that the balancer is not attached to: add it to node.interfaces."
    26 ForwardingDisabled "forwarding_disabled" Drop
        "The kernel's forwarding is switched off on the interface: something reset net.ipv4.conf.IF.forwarding or net.ipv6.conf.IF.forwarding after the start."
    27 UnknownBackend "unknown_backend" Drop
        "The schedule named a backend that its table does not hold: a fault of the balancer, please report it."
    28 TupleTaken "tuple_taken" Drop
        "In nat mode, the backend already has a connection from this client address and port through another service address: give each service its own backend port, or use `full-nat`."
    29 EchoReply "echo_reply" Transmit
        "A ping to a service's address, answered here."
    30 TtlExpiredTold "ttl_expired_told" Transmit
        "The TTL or hop limit of a packet for a service ran out here, and the sender was told (ICMP time exceeded): a traceroute, or a routing loop."
    31 TooBigTold "too_big_told" Transmit
        "A packet for a service is larger than the MTU on the way out, and the sender was told by how much (ICMP fragmentation needed, ICMPv6 packet too big): it sends smaller ones from now on."
    32 IcmpErrorTx "icmp_error_tx" Transmit
        "An ICMP error about a packet of a flow, carried to the end that had sent that packet, out of the interface it came in on."
    33 IcmpErrorRedirect "icmp_error_redirect" Redirect
        "An ICMP error about a packet of a flow, carried to the end that had sent that packet, out of another interface."
    34 IcmpErrorNoFlow "icmp_error_no_flow" Pass
        "An ICMP error about a packet of a service, but of no flow that is known: left to the host."
    35 FragmentedByHost "fragmented_by_host" Pass
        "Larger than the MTU on the way out, and may be fragmented: made ready and given to the host's stack, which cuts it up and sends it on."
    36 NeighbourUnknown "neighbour_unknown" Drop
        "In dsr mode, the backend's link address is not known (yet), and the host's stack cannot be asked to send the packet: the controller asks for the address. A few after a start are normal; many mean that the backend does not answer ARP or neighbour discovery."
    37 NotOnLink "not_on_link" Drop
        "In dsr mode, the way to the backend leads through a router, which would send the packet back here: attach the balancer to the backend's network, or use `tunnel`."
    38 ExtensionHeaders "extension_headers" Pass
        "IPv6 with more or longer extension headers than are looked through: left to the host."
    39 NoHeadroom "no_headroom" Drop
        "The driver leaves no room in front of the frame for another header: attach in generic mode, or use a mode without encapsulation."
    40 IcmpErrorExpired "icmp_error_expired" Drop
        "An ICMP error about a packet of a flow whose own TTL or hop limit ran out here: a routing loop."
    41 IcmpErrorTooBig "icmp_error_too_big" Drop
        "An ICMP error about a packet of a flow that is larger than the MTU on the way out: make the MTUs equal."
    42 FlowReset "flow_reset" Transmit
        "TCP of a flow whose backend is down (on_down = \"reset\") or was drained past its deadline: answered with a RST, so that the sender connects anew."
    43 FlowGone "flow_gone" Drop
        "Of a flow whose backend is down, and nothing to be answered (a RST, or a later fragment)."
    44 NotActive "not_active" Drop
        "For an address that moves with the role of a pair, or of a connection, while the other node has the role, or may have taken it because this node's lease is over. A few after a change of roles are normal; many mean that somebody has not heard where the addresses went. See `lb ha status`."
}

/// Capacity of the table of verdict counters; a power of two, so that the
/// counters need not move when verdicts are added.
pub const VERDICT_SLOTS: u32 = 64;

const _: () = {
    assert!(Verdict::ALL.len() <= VERDICT_SLOTS as usize);
    let mut i = 0;
    while i < Verdict::ALL.len() {
        assert!(
            Verdict::ALL[i] as usize == i,
            "verdict numbers are their places in the list"
        );
        i += 1;
    }
};
