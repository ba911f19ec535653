//! What a shard or classifier counts: every packet leaves with exactly one verdict, every drop with a named reason.

/// Declares the counters of one component: a field and a name for each, so that none can be forgotten in a listing.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: u64,)*
        }

        impl $name {
            /// Names, in the order of [`Self::values`].
            pub const NAMES: &[&str] = &[$(stringify!($field)),*];

            /// The values, in the order of [`Self::NAMES`].
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$field),*]
            }
        }
    };
}

counters! {
    /// One shard's counters, in packets unless the name says otherwise.
    ShardCounters {
        /// Came in by one of the shard's receive queues.
        received,
        /// Left by a transmit queue.
        sent,
        /// Found a route and went by it.
        hits,
        /// Found none, or a finished connection's, and went to a classifier.
        diverted,
        /// Came back from a classifier.
        answered,
        /// Belonged to another shard and went there.
        handed_over,
        /// Went to the kernel twin (or were left to it, where the kernel sees the port itself).
        twin,
        /// Were answered by the dataplane itself: ARP, neighbour discovery, echo.
        responded,
        /// Resets and ICMP errors made for a packet that could not be served.
        refused,
        /// Of these the ICMP errors about packets that were too big, which are counted as dropped as well.
        told_too_big,
        /// ICMP errors about the unit's own tunnel packets, which are counted as dropped as well.
        tunnel_errors,
        /// Tunnels' path MTUs lowered because of these, in each shard.
        paths_lowered,
        /// Routes installed.
        routes_installed,
        /// Routes that came back although one was there already, which was kept.
        routes_kept,
        /// Routes that ran out of time.
        routes_expired,
        /// Routes evicted for a newer one because the table was full.
        routes_evicted,
        /// Routes deleted or replaced by a classifier.
        routes_deleted,
        /// Ports of full-nat's pools that were looked at for new connections.
        pool_ports_tried,
        /// Packets that had to wait until the kernel knew their next hop's link-layer address.
        unresolved_held,
        /// Fragments made of packets that were too big for their way and whose senders allow it, but for each packet's first.
        split,
        /// Fragments that went on as packets of their flow.
        fragments,
        /// Fragments that had to wait for their first.
        fragments_held,
        /// Datagrams in fragments that went through whole.
        datagrams_completed,
        /// Datagrams killed: fragments that overlap or contradict each other, or too many of them.
        datagrams_killed,
        /// Datagrams that had to give way to newer ones.
        datagrams_evicted,
        /// Datagrams that were not complete in time.
        datagrams_timed_out,
        /// Notices (confirmed, closing, expired) put into rings to classifiers.
        notices,
        /// Notices that found the ring full; each is tried again where it matters.
        notices_deferred,
    }
}

counters! {
    /// One classifier's counters.
    ClassifierCounters {
        /// Packets that were diverted to it.
        questions,
        /// Decisions by allotment: new connections.
        decided,
        /// Answers from the inventory: no token spent.
        remembered,
        /// Answers from a session look-up.
        recalled,
        /// Connections nobody knows, given to the endpoint that the consistent hash names.
        guessed,
        /// Decisions that had to wait.
        pending,
        /// Packets that waited behind a pending decision of their flow.
        queued,
        /// Packets refused because no endpoint was fit.
        no_endpoint,
        /// Packets to a VIP on a port or protocol without a service.
        no_service,
        /// Connections that went to a backup endpoint.
        backup,
        /// New connections on the tuple of a finished one.
        reopened,
        /// Sessions known now, as a gauge.
        inventory,
        /// Sessions forgotten because the inventory was full.
        inventory_evicted,
        /// Notices heard from forwarders.
        notices,
    }
}

/// Declares [`DropReason`]: its variants and their names.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in order.
            pub const ALL: &[DropReason] = &[$(DropReason::$variant),*];

            /// The name that counters and JSON use.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(DropReason::$variant => $name,)*
                }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say.
    Truncated = "truncated",
    /// The Ethernet destination is somebody else's.
    ForeignMac = "foreign_mac",
    /// The port's own kernel sent it, and the port sees what it sends.
    OwnMac = "own_mac",
    /// The IP version or header length is impossible.
    BadHeader = "bad_header",
    /// A length field contradicts another one.
    BadLength = "bad_length",
    /// The IPv4 header checksum is wrong.
    BadChecksum = "bad_checksum",
    /// A source that cannot be one: multicast, broadcast, loopback, unspecified, or the destination itself.
    BadSource = "bad_source",
    /// TCP flags that no implementation sends: SYN with FIN or RST, or none at all.
    BadFlags = "bad_flags",
    /// An IPv4 source route, or options that are none.
    IpOption = "ip_option",
    /// An IPv6 extension header that is refused by policy, or too many of them.
    ExtensionHeader = "extension_header",
    /// TTL or hop limit used up.
    Ttl = "ttl",
    /// A fragment that no flow could be found for.
    Fragment = "fragment",
    /// A fragment that overlaps another one, or is too small to be honest.
    BadFragment = "bad_fragment",
    /// The first fragment of a UDP datagram that has no checksum, which IPv6 wants: RFC 7915 section 4.5.
    NoChecksum = "no_checksum",
    /// The fragment table has no place left.
    FragmentTable = "fragment_table",
    /// ICMP to a VIP that is neither echo nor an error about a known flow.
    Icmp = "icmp",
    /// An ICMP error about a tunnel packet of the unit's own, which was heard and goes no further.
    TunnelError = "tunnel_error",
    /// Echo requests beyond the rate at which they are answered.
    IcmpRate = "icmp_rate",
    /// To a VIP, but a protocol that no service has.
    Protocol = "protocol",
    /// To a VIP, but no service has the port.
    NoService = "no_service",
    /// No endpoint is fit to serve it.
    NoEndpoint = "no_endpoint",
    /// A drop route.
    Refused = "refused",
    /// The endpoint is inactive: nothing goes there.
    Inactive = "inactive",
    /// The next hop's link-layer address is not known yet.
    Unresolved = "unresolved",
    /// No route back to the client.
    NoRoute = "no_route",
    /// Too big for the way ahead.
    TooBig = "too_big",
    /// Full-nat: every port of the pool towards the chosen endpoint that was tried is in use, or was until lately.
    PoolExhausted = "pool_exhausted",
    /// No headroom for the tunnel header, or no buffer.
    NoBuffer = "no_buffer",
    /// The ring to the classifier is full.
    DivertRing = "divert_ring",
    /// A packet without a route for which there was no time: the port's queue fills, or the ring to the classifier is so full that
    /// what begins a connection has to come again (a SYN, a datagram, an ICMP error).
    DivertShed = "divert_shed",
    /// The ring to the shard that owns the flow is full.
    HandoverRing = "handover_ring",
    /// Too many packets or flows wait for a decision.
    PendingFull = "pending_full",
    /// The route table is full of routes that cannot go.
    TableFull = "table_full",
    /// The port did not take it in time.
    TxFull = "tx_full",
    /// The kernel twin did not take it.
    TwinFull = "twin_full",
    /// For a kernel twin, but beyond its budget: none of what comes first there.
    TwinRate = "twin_rate",
    /// The same of what comes first there: ARP, neighbour discovery, or a configured peer's routing and cluster traffic.
    TwinControlRate = "twin_control_rate",
    /// The queue to the kernel twin is full.
    TwinRing = "twin_ring",
    /// For a kernel twin, and nothing that comes first there, while the shard could not keep up.
    TwinShed = "twin_shed",
}

/// Drops by reason; an index for each [`DropReason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Counts one packet dropped for `reason`.
    #[inline]
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Counts `packets` dropped for `reason`.
    #[inline]
    pub fn count_many(&mut self, reason: DropReason, packets: usize) {
        self.0[reason as usize] += packets as u64;
    }

    /// How many were dropped for `reason`.
    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// The values, in the order of [`DropReason::ALL`].
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.0
    }

    /// All drops together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
